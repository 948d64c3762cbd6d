"""`meg-editor add`, `replace`, `remove`, `undo`, `merge`, `consolidate`, `compact`, `edits`."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel


def run(options: argparse.Namespace) -> None:
    """Load, change, save, and say what was done; `edits` only reads."""
    if options.command == "edits":
        _list(options)
        return
    requests: Sequence[Any] = ()
    if options.command in ("add", "replace"):  # refused before torch is there
        from meg_editor.requests.files import read_requests

        requests = read_requests(options.edits).requests

    from meg_editor.edits.conflicts import ConflictError
    from meg_editor.model.meg_model import MeGModel

    model = MeGModel.from_pretrained(options.folder, base=options.base, device=options.device)
    changes: dict[str, Callable[[], Any]] = {
        "add": lambda: model.add(requests, on_conflict=options.on_conflict),
        "replace": lambda: model.replace(requests),
        "remove": lambda: model.remove(options.prompts),
        "undo": lambda: model.undo(options.steps),
        "merge": lambda: model.merge(options.other, on_conflict=options.on_conflict),
        "consolidate": model.consolidate,
        "compact": model.compact,
    }
    try:
        done = changes[options.command]()
    except ConflictError as error:
        raise ConflictError(error.found, "--on-conflict {}") from None
    model.save_pretrained(options.folder)
    for change in done if isinstance(done, list) else [done] if done else []:
        print("taken back: " if options.command == "undo" else "", end="")
        _print(change, model, options.folder)
    print(f"{len(model.edits)} edits -> {options.folder}")


def _print(change: Any, model: MeGModel, folder: Path) -> None:
    print(change)
    for request, by in getattr(change, "merged", ()):
        print(f"  in force already, as {by}: {request.prompt!r}")
    prompts = set(getattr(change, "not_learned", ()))
    added = change.added.edits if prompts else ()
    failed = [e for e in added if e.prompt in prompts and e in model.edits]  # no undone ones
    for edit in failed:
        print(f"  not learned, in force all the same: {edit.id} {edit.prompt!r}")
    if failed:
        place = shlex.quote(str(folder))
        print(f"  `meg-editor remove {place} PROMPT_OR_ID…` takes them out")


def _list(options: argparse.Namespace) -> None:
    from meg_editor.model.saved.listing import saved_changes, saved_edits

    if options.history:
        for line in saved_changes(options.folder):
            _print_line(line.content, options.json)
        return
    for edit in saved_edits(options.folder):
        if options.json:
            print(json.dumps(edit.listed, ensure_ascii=False))
        else:
            print(f"{edit.id}  {edit.by:8} {edit.state:9} {edit.prompt} -> {edit.target_new}")


def _print_line(content: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
        return
    what = f"undo of {content['undoes']}" if content["undoes"] else content["kind"]
    added = [f"+ {entry['prompt']} -> {entry['target_new']}" for entry in content["edits"]]
    removed = [f"- {each}" for each in content["removed"]]
    print(f"{content['number']:4} {content['when']} {what}: {'; '.join(added + removed)}")
