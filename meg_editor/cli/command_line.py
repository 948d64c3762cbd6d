"""The command line of a measurement, for its report."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from typing import Any

from meg_editor.cli.parser import build_parser
from meg_editor.runtime.files import without_folder


def command_line(options: argparse.Namespace) -> str:
    """The command with these options: what is not a default, files without their folders.

    A secret is left out.

    Example:
        >>> arguments = ["benchmark", "--data", "zsre", "--path", "/data/zsre.json", "--out", "/o"]
        >>> command_line(build_parser().parse_args(arguments))
        'meg-editor benchmark --data zsre --path zsre.json --out o'
    """
    needed = [options.command, "--data", options.data, "--out", str(options.out)]
    defaults = vars(build_parser().parse_args(needed))
    words = ["meg-editor", options.command]
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
