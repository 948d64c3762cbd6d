"""The command line: meg-editor demo, edit, ask, layers, benchmark, tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers
import yaml

from meg_editor.config.hparams import MeGHyperParams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call] # ours tell more
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted; finished stages are kept, the same command resumes", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"meg-editor: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meg-editor", description="Edit thousands of facts in a language model at once."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="edit the reference model and measure everything")
    demo.add_argument("--edits", type=int, default=256, help="facts to edit (default 256)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", type=Path, default=Path("meg-demo"), help="default ./meg-demo")
    demo.add_argument("--preset", choices=("default", "paper"), help="only this one (default both)")
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    demo.set_defaults(run=_demo)

    edit = commands.add_parser(
        "edit", help="edit a model with facts from a file; accelerate launch -m meg_editor edit …"
    )
    _add_model(edit)
    edit.add_argument("--edits", type=Path, required=True, help="JSON, JSONL or CSV")
    edit.add_argument("--pseudo", type=Path, help="facts with rephrases for tuning the encoder")
    edit.add_argument("--calibration", type=Path, help="facts for choosing the gate's threshold")
    edit.add_argument("--out", type=Path, required=True, help="folder of the edited model")
    edit.add_argument("--save-base", action="store_true", help="store the base model in --out too")
    edit.set_defaults(run=_edit)

    ask = commands.add_parser("ask", help="ask an edited model")
    ask.add_argument("folder", type=Path)
    ask.add_argument("question", nargs="?", help="without one: interactive")
    ask.add_argument("--base", action="store_true", help="show the unedited answer beside it")
    ask.add_argument("--max-new-tokens", type=int, default=32)
    ask.add_argument("--device", default="auto")
    ask.set_defaults(run=_ask)

    layers = commands.add_parser(
        "layers",
        help="find the best layer for the neuron (figures 5-7), or settings in one --layer",
    )
    _add_model(layers)
    layers.add_argument("--edits", type=Path, help="facts to try (default: the reference world's)")
    _add_data(layers, "calibration facts of reference, counterfact, zsre, …")
    layers.add_argument("--count", type=int, default=64, help="facts without --edits")
    layers.set_defaults(run=_layers)

    bench = commands.add_parser("benchmark", help="methods side by side on a data set")
    _add_model(bench)
    bench.add_argument("--paper-hparams", type=Path, help="YAML file for meg-paper")
    _add_data(bench, "reference, counterfact, zsre, …", required=True)
    _add_output(bench)
    bench.add_argument(
        "--methods", default="unedited,meg,meg-paper", help="comma-separated, or all"
    )
    bench.add_argument("--seeds", type=int, default=3)
    bench.add_argument("--ask", type=int, help="only about so many of the edits (default: all)")
    bench.add_argument("--trials", type=int, default=8, help="settings tried for each baseline")
    bench.add_argument("--trial-edits", type=int, default=64, help="calibration facts per trial")
    bench.add_argument(
        "--settings-from", type=Path, help="an earlier report.json: its baselines are not searched"
    )
    bench.set_defaults(run=_benchmark)

    tables = commands.add_parser("tables", help="the paper's ablations on one model")
    _add_model(tables, preset="paper")
    _add_data(tables, "reference, counterfact, zsre, …", required=True)
    _add_output(tables)
    tables.add_argument("--unke", type=Path, help="UnKE's file, for table 17")
    tables.add_argument("--mquake", type=Path, help="MQuAKE's file, for table 18")
    tables.add_argument("--long-answers", type=int, default=100, help="facts of table 17")
    tables.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of tables")
    tables.set_defaults(run=_tables)
    return parser


def _add_data(command: argparse.ArgumentParser, told: str, required: bool = False) -> None:
    command.add_argument("--data", required=required, help=told)
    command.add_argument("--path", type=Path, help="the file of the data set")
    command.add_argument("--training-path", type=Path, help="facts of the fitting stages (ZsRE)")


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--edits", type=int, nargs="+", default=[1024])
    command.add_argument("--out", type=Path, required=True, help="cells and reports")
    command.add_argument("--plots", action="store_true", help="draw PNG files too")


def _add_model(command: argparse.ArgumentParser, preset: str = "default") -> None:
    command.add_argument("--model", help="hub id or directory (default: the reference model)")
    command.add_argument("--encoder", help="hub id or directory (default: as in the preset)")
    command.add_argument("--hparams", type=Path, help="YAML file (default: the preset)")
    command.add_argument("--preset", choices=("default", "paper"), default=preset)
    command.add_argument("--layer", type=int, help="decoder layer which gets the neuron")
    command.add_argument("--device", help="auto, cpu, cuda, cuda:1 …")
    command.add_argument("--seed", type=int)
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any hyper-parameter"
    )


def _hparams(options: argparse.Namespace) -> MeGHyperParams:
    """The file or the preset, then --set, then the options which have a name of their own."""
    return _settings(options, options.hparams, options.preset, options.set)


def _settings(
    options: argparse.Namespace, path: Path | None, preset: str, changes: Sequence[str]
) -> MeGHyperParams:
    if path:
        values = MeGHyperParams.from_hparams(path).to_dict()
    else:
        values = MeGHyperParams.preset(preset).to_dict()
        if options.model:  # the reference encoder only knows the reference world
            values["encoder_name"] = "bert-base-uncased"
    for item in changes:
        name, found, value = item.partition("=")
        if not found:
            raise ValueError(f"--set expects NAME=VALUE, got {item!r}")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {name}: cannot read the value {value!r}: {error}") from error
    own = {
        "model_name": options.model,
        "encoder_name": options.encoder,
        "device": options.device,
        "seed": options.seed,
        "layers": None if options.layer is None else [options.layer],
    }
    return MeGHyperParams.from_dict(values | {k: v for k, v in own.items() if v is not None})


def _demo(options: argparse.Namespace) -> None:
    from meg_editor.cli.demo import PRESETS, run_demo

    presets = (options.preset,) if options.preset else PRESETS
    run_demo(options.edits, options.seed, options.out, presets, options.device)


def _edit(options: argparse.Namespace) -> None:
    from meg_editor.fitting.pipeline import fit
    from meg_editor.lm.loading import load_model
    from meg_editor.model.saving import check_destination
    from meg_editor.requests.files import read_requests
    from meg_editor.runtime.artifacts import ArtifactStore
    from meg_editor.runtime.processes import Processes

    hparams = _hparams(options)
    processes = Processes.launched(hparams.device)
    merged = read_requests(options.edits)
    pseudo, calibration = (
        read_requests(path).requests if path else None
        for path in (options.pseudo, options.calibration)
    )
    out = check_destination(options.out)
    model, tokenizer = load_model(hparams)
    edited, report = fit(
        model,
        tokenizer,
        merged.requests,
        hparams,
        pseudo=pseudo,
        calibration=calibration,
        store=ArtifactStore(out.with_name(f"{out.name}.stages")),
        processes=processes,
    )
    if not processes.is_main:
        return
    edited.save_pretrained(out, save_base=options.save_base)
    resumed = f" (resumed: {', '.join(report.resumed)})" if report.resumed else ""
    print(f"{report.edits} facts in {sum(report.seconds.values()):.1f} s{resumed} -> {options.out}")
    if merged.duplicates:
        print(f"{merged.duplicates} repeated rows were merged")
    for label, prompts in (
        ("already the model's answer", report.already_correct),
        ("not learned", report.not_collected),
    ):
        if prompts:
            shown = "; ".join(prompts[:3]) + ("; …" if len(prompts) > 3 else "")
            print(f"{label}: {len(prompts)} ({shown})")
    if report.calibration:
        print(f"gate threshold, on facts set aside (table 16):\n{report.calibration.table()}")


def _ask(options: argparse.Namespace) -> None:
    from meg_editor.lm.loading import resolve_device
    from meg_editor.lm.tokens import greedy_answers
    from meg_editor.model.saving import from_pretrained

    if options.question is not None and not options.question.strip():
        raise ValueError("the question is empty")
    model = from_pretrained(options.folder, device=resolve_device(options.device))

    def answer(question: str) -> None:
        routing = model.route(question)
        (told,) = model.answer(question, options.max_new_tokens)
        print(told)
        relation = "≥" if routing.is_edit[0] else "<"
        why = f"score {float(routing.score[0]):.3f} {relation} {routing.threshold:.3f}"
        meant = model.edits[int(routing.nearest[0])].prompt
        state = f"an edit: {meant!r}" if routing.is_edit[0] else f"not an edit (nearest: {meant!r})"
        print(f"  [{state}, {why}]")
        if options.base:
            with model.applied(None):
                (told,) = greedy_answers(
                    model, model.tokenizer, [model.reader.wrap(question)], options.max_new_tokens
                )
            print(f"  [unedited: {told}]")

    if options.question is not None:
        answer(options.question)
        return
    print(f"{len(model.edits)} edits. Ask; an empty line ends.", file=sys.stderr)
    while question := _line():
        answer(question)


def _benchmark(options: argparse.Namespace) -> None:
    from meg_editor.benchmark.commands import benchmark_command

    paper = _settings(options, options.paper_hparams, "paper", ())
    benchmark_command(options, _hparams(options), paper)


def _tables(options: argparse.Namespace) -> None:
    from meg_editor.benchmark.commands import tables_command

    tables_command(options, _hparams(options))


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _layers(options: argparse.Namespace) -> None:
    from meg_editor.collection.layer_sweep import layer_sweep
    from meg_editor.lm.loading import load_model

    hparams = _hparams(options)
    if options.edits and options.data:
        raise ValueError("facts to try: expected --edits or --data, got both: leave one out")
    if options.edits:
        from meg_editor.requests.files import read_requests

        requests = list(read_requests(options.edits).requests)
    elif options.data:
        from meg_editor.benchmark.commands import calibration_facts

        requests = calibration_facts(options, options.count)
    else:
        from meg_editor.data.world.requests import sweep_requests

        requests = sweep_requests(options.count, hparams.seed)
    model, tokenizer = load_model(hparams)
    tried = None if options.layer is None else [options.layer]
    results = layer_sweep(model, tokenizer, requests, hparams, tried)
    print(f"layer  reliability  generality  steps  ms/fact   ({len(requests)} facts, AG, %)")
    for result in results:
        generality = "-" if result.generality is None else f"{result.generality:.1f}"
        print(
            f"{result.layer:>5} {result.reliability:>12.1f} {generality:>11} {result.steps:>6.1f} "
            f"{result.milliseconds:>8.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
