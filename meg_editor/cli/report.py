"""`meg-editor report`: what an edited model does, measured, as one HTML file and a model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from meg_editor.runtime.files import check_creatable, check_regular, resolved


def run(options: argparse.Namespace) -> None:
    """Check where it goes, measure, write, and say what was measured."""
    given = [(name, path) for name in ("out", "card") if (path := getattr(options, name))]
    if len({resolved(path) for _, path in given}) < len(given):
        raise ValueError(f"--out and --card: expected two files, got {options.out} twice")
    outputs = {name: _writable(path, options.folder, f"--{name}") for name, path in given}

    from meg_editor.model.meg_model import MeGModel
    from meg_editor.model.saved.loading import local_folder
    from meg_editor.reports.card import card
    from meg_editor.reports.measure import measure
    from meg_editor.reports.page import page
    from meg_editor.runtime.text_files import write_text

    folder = local_folder(options.folder)
    model = MeGModel.from_pretrained(folder, base=options.base, device=options.device)
    # A repository of the hub lies in a folder of another name.
    name = str(options.folder) if folder != resolved(options.folder) else folder.name
    report = measure(model, folder, options.edits, name=name)
    texts = {"out": page, "card": card}
    for kind, path in outputs.items():
        write_text(path, texts[kind](report))
    print(report)
    for path in outputs.values():
        print(f"-> {path}")


def _writable(path: Path, folder: Path, option: str) -> Path:
    """The absolute path of a file which can be written, outside the folder of the edits.

    Raises:
        ValueError: it is in the folder, which would not be that of edits alone any more.
        OSError: it cannot be written.
    """
    path = resolved(path)
    if resolved(folder) in (path, *path.parents):
        raise ValueError(
            f"{option} {path}: expected a file outside the folder of the edits, whose files are "
            "counted and checked; write it beside that"
        )
    try:
        check_regular(path, missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        check_creatable(path)
    except OSError as error:
        raise OSError(error.errno, f"{option} {path} cannot be written: {error}") from error
    return path
