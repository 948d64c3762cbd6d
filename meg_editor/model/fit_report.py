"""The report of a fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from meg_editor.collection.collect import Collection
from meg_editor.routing.gates import Calibration

_SHOWN = 3  # prompts in a line


class _Timed(Protocol):
    @property
    def seconds(self) -> float: ...
    @property
    def resumed(self) -> bool: ...


Result = TypeVar("Result", bound=_Timed)


@dataclass(repr=False)
class FitReport:
    """Report of a fit; its repr is a short table.

    Attributes:
        edits: N, without duplicates.
        duplicates: repeated rows which were merged.
        already_correct: prompts whose target was the model's answer before the edit.
        not_collected: prompts whose neuron does not give the target; see `collection`.
        calibration: of the gate; None if its threshold was given.
        collection: neurons, success and steps of collection.
        seconds: run time per stage.
        resumed: stages that were loaded from disk instead of run.

    Example:
        >>> FitReport(2, 1, ["The capital of France is"], seconds={"collection": 3.0})
        2 edits in 3.0 s: collection 3.0 s
        1 repeated rows were merged
        already the model's answer: 1 (The capital of France is)
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
        """Run time of all stages, per edit."""
        return sum(self.seconds.values()) / self.edits

    def note(self, stage: str, result: Result) -> Result:
        """Record time and resumption of a stage; returns its result."""
        self.seconds[stage] = result.seconds
        if result.resumed:
            self.resumed.append(stage)
        return result

    @property
    def notes(self) -> list[str]:
        """What became of rows other than a learned edit, a line each."""
        merged = f"{self.duplicates} repeated rows were merged"
        lines = [merged] if self.duplicates else []
        for label, prompts in (
            ("already the model's answer", self.already_correct),
            ("not learned", self.not_collected),
        ):
            if prompts:
                shown = "; ".join(prompts[:_SHOWN]) + ("; …" if len(prompts) > _SHOWN else "")
                lines.append(f"{label}: {len(prompts)} ({shown})")
        return lines

    def __repr__(self) -> str:
        stages = ", ".join(
            f"{stage} {seconds:.1f} s{' (resumed)' if stage in self.resumed else ''}"
            for stage, seconds in self.seconds.items()
        )
        total = sum(self.seconds.values())
        lines = [f"{self.edits} edits in {total:.1f} s: {stages}", *self.notes]
        if self.calibration:
            lines.append(
                f"gate threshold {self.calibration.threshold:.3f}, "
                f"{100 * self.calibration.balance:.1f} % right on held-out facts"
            )
        return "\n".join(lines)
