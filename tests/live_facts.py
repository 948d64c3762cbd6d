"""What tests of live edits add, and what they compare of models and folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns.live_sequences import noted
from conftest import OTHERS, PROMPTS

from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.listing import saved_edits
from meg_editor.model.saved.loading import from_pretrained
from meg_editor.requests.request import EditRequest

Ids = frozenset[str]
TEXTS = [*PROMPTS, *OTHERS]


def facts(*rows: int, target: str = "Lima") -> list[EditRequest]:
    return [EditRequest(PROMPTS[row], target) for row in rows]


def ids(model: MeGModel) -> Ids:
    return frozenset(edit.id for edit in model.edits)


def listed(folder: Path) -> Ids:
    return frozenset(edit.id for edit in saved_edits(folder))


def log_of(folder: Path) -> Path:
    (log,) = folder.glob("changes/*/log.jsonl")
    return log


def load(model: MeGModel, folder: Path) -> MeGModel:
    return from_pretrained(folder, base=model.base)


def three_changes(model: MeGModel, folder: Path | None) -> list[Ids]:
    """Add, remove and replace, saved to `folder` one by one; the versions, the first one too."""
    steps: list[Callable[[], Any]] = [
        lambda: model.add(facts(8)),
        lambda: model.remove(PROMPTS[0]),
        lambda: model.replace(facts(1, target="“Ål” 你好\u2028")),
    ]
    versions = [ids(model)]
    for step in steps:
        step()
        versions.append(ids(model))
        if folder:
            model.save_pretrained(folder)
    return versions


def assert_same(ours: MeGModel, theirs: MeGModel) -> None:
    assert [edit.id for edit in ours.edits] == [edit.id for edit in theirs.edits]
    assert [(e.when, e.by, e.state) for e in ours.edits] == [
        (e.when, e.by, e.state) for e in theirs.edits
    ]
    assert list(map(noted, ours.history())) == list(map(noted, theirs.history()))
    assert repr(ours.route(TEXTS)) == repr(theirs.route(TEXTS))
    assert ours.answer(TEXTS, 4) == theirs.answer(TEXTS, 4)


def state(model: MeGModel) -> dict[str, Any]:
    """What is in force: arrays, ids and history."""
    arrays = {name: value.tolist() for name, value in model.edition.state_dict().items()}
    return {**arrays, "ids": [e.id for e in model.edits], "history": model.history()}
