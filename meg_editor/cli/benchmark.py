"""`meg-editor benchmark`: methods side by side on a data set."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from typing import Any

from meg_editor.cli.hparams import check_sources, read_hparams, read_paper_hparams
from meg_editor.cli.parser import build_parser
from meg_editor.runtime.files import without_folder


def run(options: argparse.Namespace) -> None:
    """Run, or resume, every cell and print the report."""
    hparams, paper = read_hparams(options), read_paper_hparams(options)
    check_sources(hparams)

    from meg_editor.benchmark.commands import benchmark_command

    benchmark_command(options, hparams, paper, command_line(options))


def command_line(options: argparse.Namespace) -> str:
    """The command that gives these options: what is not a default, files without their folders.

    A secret is left out.

    Example:
        >>> arguments = ["benchmark", "--data", "zsre", "--path", "/data/zsre.json", "--out", "/o"]
        >>> command_line(build_parser().parse_args(arguments))
        'meg-editor benchmark --data zsre --path zsre.json --out o'
    """
    needed = ["benchmark", "--data", options.data, "--out", str(options.out)]
    defaults = vars(build_parser().parse_args(needed))
    words = ["meg-editor", "benchmark"]
    for name, value in vars(options).items():
        if name in ("data", "out") or value != defaults[name]:
            words += _words(f"--{name.replace('_', '-')}", value)
    return shlex.join(words)


def _words(option: str, value: Any) -> Iterator[str]:
    if option == "--set":
        for entry in value:
            if entry.partition("=")[0].strip() != "api_key":
                yield from (option, _without_folders(entry))
        return
    yield option
    if value is not True:  # a flag
        entries = value if isinstance(value, list) else [value]
        yield from (_without_folders(str(entry)) for entry in entries)


def _without_folders(text: str) -> str:
    """`text` with the last part of each path in it."""
    return "".join(map(without_folder, re.split("([,=])", text)))
