"""What happened while a model was edited."""

from __future__ import annotations

from dataclasses import dataclass, field

from meg_editor.collection.collect import Collection
from meg_editor.routing.gates import Calibration


@dataclass
class FitReport:
    """What happened while fitting.

    Attributes:
        edits: N, after merging `duplicates` repeated rows.
        already_correct: prompts whose target was the model's answer before any edit.
        not_collected: prompts whose neuron does not give the target; see `collection`.
        seconds: per stage.
        resumed: stages that were read from disk instead of run.
    """

    edits: int
    duplicates: int
    already_correct: list[str]
    not_collected: list[str] = field(default_factory=list)
    calibration: Calibration | None = None
    collection: Collection | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)

    @property
    def seconds_per_edit(self) -> float:
        return sum(self.seconds.values()) / self.edits
