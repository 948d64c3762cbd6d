"""Changes of a model's edits, and their history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from meg_editor.edits.edit import Edit
from meg_editor.edits.edition import Edition, Rows
from meg_editor.requests.request import EditRequest

Kind = Literal["add", "replace", "remove", "merge", "reattach", "undo"]
_SHOWN = 3  # edits in a line


@dataclass(frozen=True, repr=False)
class Change:
    """One change of the edits in force; its repr is a line.

    Attributes:
        number: counted from 1; 0 where nothing changed.
        kind: what was asked for.
        when: UTC, in ISO 8601.
        added, removed: edits which came into force, and which went out of it.
        merged: requests which an edit in force answers already, with the id of that edit.
        not_learned: added prompts whose neuron does not give the target.
        undoes: for an "undo", the number of the change which was taken back.

    Example:
        >>> Change(3, "remove", "2026-11-27T08:00:00+00:00")
        3. remove 2026-11-27T08:00:00+00:00: nothing changed
    """

    number: int
    kind: Kind
    when: str
    added: Rows = field(default_factory=Rows.none)
    removed: Rows = field(default_factory=Rows.none)
    merged: tuple[tuple[EditRequest, str], ...] = ()
    not_learned: tuple[str, ...] = ()
    undoes: int | None = None

    def __repr__(self) -> str:
        parts = [f"added {_some(self.added.edits)}"] if self.added.edits else []
        if self.removed.edits:
            parts.append(f"removed {_some(self.removed.edits)}")
        if self.merged:
            parts.append(f"{len(self.merged)} in force already")
        if self.not_learned:
            parts.append(f"{len(self.not_learned)} not learned")
        what = f"{self.kind} of {self.undoes}" if self.undoes else self.kind
        return f"{self.number}. {what} {self.when}: {'; '.join(parts) or 'nothing changed'}"


class History:
    """The changes since a model was fitted, consolidated or compacted.

    Args:
        origin: the edition before the first of them.
        changes: in order.

    Example:
        >>> from meg_editor.generators import NeuronBank
        >>> from meg_editor.routing.gates import SimilarityGate
        >>> from meg_editor.routing.index import QueryIndex
        >>> import torch
        >>> empty = QueryIndex(torch.zeros(0, 2), [])
        >>> history = History(Edition([], SimilarityGate(), empty, NeuronBank(2, 3, 0)))
        >>> history.next_number, history.undoable
        (1, [])
    """

    def __init__(self, origin: Edition) -> None:
        self.origin = origin
        self.changes: list[Change] = []

    @property
    def next_number(self) -> int:
        """Number of the next change."""
        return self.changes[-1].number + 1 if self.changes else 1

    @property
    def undoable(self) -> list[Change]:
        """Changes which are in effect, and can be taken back from the last one on."""
        undone = {change.undoes for change in self.changes}
        return [c for c in self.changes if c.kind != "undo" and c.number not in undone]


def _some(edits: Sequence[Edit]) -> str:
    shown = ", ".join(f"{e.id} {e.prompt[:40]!r} -> {e.target_new[:20]!r}" for e in edits[:_SHOWN])
    return shown + (f" and {len(edits) - _SHOWN} more" if len(edits) > _SHOWN else "")
