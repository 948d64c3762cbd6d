"""Commands and options of `meg-editor`; needs neither torch nor transformers.

`meg-editor NAME` runs `run` of the module `meg_editor.cli.NAME`, or of the one which its parser
names; it is imported then.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NoReturn, TypeAlias

from meg_editor.cli.live_parser import add_commands, add_folder

Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"

SETTINGS_NOTE = "`meg-editor settings` lists all NAMEs of --set with defaults and explanations."
_PRESETS = ("default", "paper")
_FORMS_HELP = "JSON list of prompt forms in which up to 64 edits are asked for too"
_DATA_HELP = "reference, counterfact, zsre, mquake, unke, knowedit or wikibigedit"


_LONGEST = 800  # characters of a message


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, whatever the arguments hold."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def one_line(text: str) -> str:
    """A message for the terminal: its white space joined, no control characters, its middle cut.

    Example:
        >>> one_line("no such file:\\n\\x1b[2J")
        'no such file: \\\\x1b[2J'
    """
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `meg-editor`."""
    parser = _Parser(
        prog="meg-editor",
        description="Edit thousands of facts in a language model at once.",
        epilog="`meg-editor COMMAND --help` explains a command. Exit status: 0, 2 for bad input, "
        "130 after Ctrl-C, 1 for anything else.",
    )
    _add_logging(parser, default=False)
    commands = parser.add_subparsers(dest="command", required=True)
    edited = (_demo, _edit, _ask, _serve, _report)
    measured = (_prepare, _layers, _benchmark, _tables)
    for add in (*edited, *measured, _settings, _cache):
        add(commands)
    add_commands(commands, _command)
    return parser


def natural(text: str) -> int:
    """A number of an option from 0 up; argparse reports the error.

    Example:
        >>> natural("7")
        7
    """
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text[:40]!r}")
    return int(text)


def port(text: str) -> int:
    """A port of TCP.

    Example:
        >>> port("8000")
        8000
    """
    if (number := natural(text)) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {number}")
    return number


def positive(text: str) -> int:
    """A number of an option from 1 up.

    Example:
        >>> positive("7")
        7
    """
    if not (number := natural(text)):
        raise argparse.ArgumentTypeError("expected a whole number from 1 up, got 0")
    return number


def _command(commands: Commands, name: str, text: str, note: str = "") -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=note
    )
    _add_logging(command, default=argparse.SUPPRESS)  # keeps what stood before the command's name
    return command


def _demo(commands: Commands) -> None:
    demo = _command(commands, "demo", "edit the reference model, or yours, and show what changed")
    demo.add_argument(
        "--model", help="a pretrained LLM instead, such as smollm2: some facts which it knows"
    )
    demo.add_argument("--encoder", help="for --model: hub id or directory of the text encoder")
    demo.add_argument("--edits", type=int, help="facts to edit (default 256; with --model 8)")
    demo.add_argument("--seed", type=natural, default=0, help="draws the facts (default 0)")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("meg-demo"),
        help="folder of the report, the picture and the edited model (default ./meg-demo)",
    )
    demo.add_argument("--preset", choices=_PRESETS, help="only this one (default both)")
    demo.add_argument("--forms", type=Path, help=_FORMS_HELP)
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default auto)")


def _edit(commands: Commands) -> None:
    note = f"{SETTINGS_NOTE} Several processes: accelerate launch -m meg_editor edit …"
    edit = _command(commands, "edit", "edit a model with the facts of a file", note)
    _add_model(edit)
    edit.add_argument("--edits", type=Path, required=True, help="facts as JSON, JSONL or CSV")
    _add_tuning(edit)
    edit.add_argument("--out", type=Path, required=True, help="folder of the edited model")
    edit.add_argument("--save-base", action="store_true", help="store the base model in --out too")


def _ask(commands: Commands) -> None:
    ask = _command(commands, "ask", "ask an edited model")
    ask.add_argument("folder", type=Path, help="what `meg-editor edit --out` wrote")
    ask.add_argument("question", nargs="?", help="without one: a prompt, line by line")
    ask.add_argument("--base", action="store_true", help="show the unedited answer beside it")
    ask.add_argument("--model", help="the base model, where it is not where it was")
    ask.add_argument(
        "--explain",
        action="store_true",
        help="show spans, candidate edits, scores and the verifier",
    )
    ask.add_argument(
        "--max-new-tokens", type=positive, help="default 32, more where an edited answer is longer"
    )
    ask.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default auto)")


def _serve(commands: Commands) -> None:
    text = "serve an edited model by the OpenAI protocol, with its edits and a page to look at them"
    serve = _command(commands, "serve", text)
    add_folder(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: local)")
    serve.add_argument("--port", type=port, default=8000, help="0: any free one (default 8000)")
    serve.add_argument("--api-key", help="for answers; or MEG_EDITOR_API_KEY (default: none)")
    serve.add_argument(
        "--admin-key", help="for edits; or MEG_EDITOR_ADMIN_KEY (default: one is made and printed)"
    )
    serve.add_argument(
        "--max-answers", type=positive, default=256, help="under way at once (default 256)"
    )
    serve.add_argument(
        "--max-body", type=positive, default=1 << 20, help="bytes of a request (default 1 MiB)"
    )
    serve.add_argument(
        "--requests-per-minute", type=natural, default=0, help="of one client (default: no limit)"
    )
    serve.add_argument(
        "--grace", type=positive, default=30, help="seconds for answers at the end (default 30)"
    )


def _report(commands: Commands) -> None:
    text = "measure an edited model, and write it down as one HTML file to mail around"
    report = _command(commands, "report", text)
    add_folder(report)
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the file (default ./report.html)"
    )
    report.add_argument("--card", type=Path, help="write a model card for the Hub too: README.md")
    report.add_argument(
        "--edits", type=positive, default=200, help="ask at most so many, sampled (default 200)"
    )


def _prepare(commands: Commands) -> None:
    text = "do ahead what the next edits of a model need: conversion, encoder, gate"
    note = f"It is kept in the folder of `meg-editor cache`. {SETTINGS_NOTE}"
    prepare = _command(commands, "prepare", text, note)
    _add_model(prepare)
    _add_tuning(prepare)


def _layers(commands: Commands) -> None:
    text = "find the best layer for the neuron (figures 5-7), or settings in one --layer"
    layers = _command(commands, "layers", text, SETTINGS_NOTE)
    _add_model(layers)
    layers.add_argument(
        "--edits", type=Path, help="facts to try (default: real ones; without --model made-up too)"
    )
    _add_data(layers, f"try calibration facts of {_DATA_HELP}")
    layers.add_argument("--count", type=positive, default=64, help="of these facts (default 64)")


def _benchmark(commands: Commands) -> None:
    bench = _command(
        commands, "benchmark", "compare methods side by side on a data set", SETTINGS_NOTE
    )
    _add_model(bench)
    bench.add_argument("--paper-hparams", type=Path, help="YAML file for meg-paper")
    _add_data(bench, _DATA_HELP, required=True)
    _add_output(bench)
    bench.add_argument(
        "--methods", default="unedited,meg,meg-paper", help="comma-separated, or all"
    )
    bench.add_argument("--seeds", type=positive, default=3, help="samples of facts (default 3)")
    bench.add_argument("--ask", type=positive, help="evaluate so many edits only (default: all)")
    bench.add_argument("--forms", type=Path, help=_FORMS_HELP)
    bench.add_argument(
        "--sequential",
        type=positive,
        nargs="?",
        const=1,
        metavar="K",
        help="edits arrive one after another, K at a time (default 1), and are asked at the end",
    )
    bench.add_argument(
        "--judge",
        choices=("exact", "natural"),
        default="exact",
        help="natural: judge answers up to the model's own stop too (WILD), not cut at the target",
    )
    bench.add_argument("--trials", type=natural, default=8, help="settings tried per baseline")
    bench.add_argument("--trial-edits", type=positive, default=64, help="facts of a trial")
    bench.add_argument(
        "--settings-from", type=Path, help="an earlier report.json: its baselines are not searched"
    )


def _tables(commands: Commands) -> None:
    tables = _command(commands, "tables", "run the paper's ablations on one model", SETTINGS_NOTE)
    _add_model(tables, preset="paper")
    _add_data(tables, _DATA_HELP, required=True)
    _add_output(tables)
    tables.add_argument("--unke", type=Path, help="UnKE's file, for table 17")
    tables.add_argument("--mquake", type=Path, help="MQuAKE's file, for table 18")
    tables.add_argument("--long-answers", type=positive, default=100, help="facts of table 17")
    tables.add_argument("--only", type=positive, nargs="+", metavar="N", help="numbers of tables")


def _settings(commands: Commands) -> None:
    settings = _command(commands, "settings", "list every setting with its default and meaning")
    settings.add_argument(
        "--preset", choices=_PRESETS, help="the values of this preset instead of the defaults"
    )
    settings.add_argument("words", nargs="*", help="only settings whose name or help has a word")


def _cache(commands: Commands) -> None:
    text = "list what was made once for a model and kept (folder: MEG_EDITOR_CACHE)"
    _command(commands, "cache", text).add_argument(
        "--clear", action="store_true", help="remove all of it; it is made again when needed"
    )


def _add_logging(parser: argparse.ArgumentParser, default: bool | str) -> None:
    group = parser.add_argument_group("messages")
    group.add_argument("--verbose", action="store_true", default=default, help="log what is done")
    group.add_argument(
        "--debug", action="store_true", default=default, help="log more; errors with traceback"
    )


def _add_data(command: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    command.add_argument("--data", required=required, help=text)
    command.add_argument("--path", type=Path, help="the file of the data set")
    command.add_argument("--training-path", type=Path, help="facts of the fitting stages (ZsRE)")


def _add_tuning(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--pseudo", type=Path, help="facts to tune on, with rephrases and locality prompts"
    )
    command.add_argument(
        "--calibration", type=Path, help="held-out facts for choosing the gate's threshold"
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--edits", type=positive, nargs="+", default=[1024], help="default 1024")
    command.add_argument("--out", type=Path, required=True, help="folder of cells and reports")
    command.add_argument("--plots", action="store_true", help="draw PNG files too")


def _add_model(command: argparse.ArgumentParser, preset: str = "default") -> None:
    group = command.add_argument_group("model and settings")
    group.add_argument("--model", help="hub id or directory (default: the reference model)")
    group.add_argument("--encoder", help="hub id or directory (default: the preset's)")
    group.add_argument("--hparams", type=Path, help="YAML file of settings (default: --preset)")
    group.add_argument("--preset", choices=_PRESETS, default=preset, help=f"default: {preset}")
    group.add_argument("--layer", type=natural, help="decoder layer of the neuron, from 0")
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1 …")
    group.add_argument("--seed", type=natural, help="seed of every random choice")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting, as often as needed: numbers, true, null, [1] as in YAML, text as it is;"
        " list the names with `meg-editor settings`",
    )
