"""The parsers of the commands which change or list the edits in a folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Commands = Any  # argparse's own type is private


def add_folder(parser: argparse.ArgumentParser, loads: bool = True) -> None:
    """The options of a command on a folder of edits.

    Args:
        loads: whether the model is loaded, and not only what is written of it.
    """
    parser.add_argument("folder", type=Path, help="what `meg-editor edit --out` wrote")
    if loads:
        parser.add_argument("--base", help="the base model, where it is not where it was")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda … (default auto)")


def add_commands(commands: Commands, command: Callable[..., argparse.ArgumentParser]) -> None:
    """The parsers of the commands which change or list the edits in a folder.

    Args:
        command: adds a parser: (commands, name, help) -> parser.
    """
    files: dict[str, Any] = {"required": True, "type": Path, "help": "facts as JSON, JSONL or CSV"}

    def of_folder(name: str, text: str, loads: bool = True) -> argparse.ArgumentParser:
        parser = command(commands, name, text)
        parser.set_defaults(module="live")
        add_folder(parser, loads)
        return parser

    def conflicting(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--on-conflict",
            choices=("refuse", "replace", "keep"),
            default="refuse",
            help="where an edit answers the same question otherwise (default refuse)",
        )

    add = of_folder("add", "add edits to an edited model; the others stay as they are")
    add.add_argument("--edits", **files)
    conflicting(add)
    of_folder("replace", "give edited prompts new targets").add_argument("--edits", **files)
    remove = of_folder("remove", "take edits back")
    remove.add_argument("prompts", nargs="+", metavar="PROMPT_OR_ID", help="as `edits` lists them")
    undo = of_folder("undo", "take the last changes back")
    undo.add_argument("--steps", type=int, default=1, help="how many (default 1)")
    merge = of_folder("merge", "add the edits of another folder, with their neurons")
    merge.add_argument("other", type=Path, help="another folder of edits")
    conflicting(merge)
    of_folder("consolidate", "train the generator on all neurons, to save bytes")
    of_folder("compact", "forget the history, and reclaim the space of removed edits")
    edits = of_folder("edits", "list the edits of a folder", loads=False)
    edits.add_argument("--history", action="store_true", help="list the changes instead")
    edits.add_argument("--json", action="store_true", help="as JSON lines, which --edits reads")
