"""What a saved folder has to give back."""

from __future__ import annotations

from typing import Any

from meg_editor import MeGModel


def content(model: MeGModel) -> list[Any]:
    parts = (model.gate, model.generator, model.index)
    return [model.edits, *(v.tolist() for part in parts for v in part.state_dict().values())]
