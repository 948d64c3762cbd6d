"""Measurements of an edited model, as the page and the model card show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meg_editor.edits.change import Change
from meg_editor.edits.edit import Edit
from meg_editor.reports.texts import size


@dataclass(frozen=True)
class Share:
    """How many of some prompts.

    Example:
        >>> Share(7, 8).percent, Share(9999, 10000).percent, Share(0, 0).percent
        ('87.5 %', '99.9 %', '–')
        >>> str(Share(7, 8)), Share(7, 8) + Share(1, 2)
        ('7 of 8', Share(count=8, total=10))
    """

    count: int
    total: int

    @property
    def percent(self) -> str:
        """To one decimal; 100 % and 0 % are all and none, not nearly so."""
        if not self.total:
            return "–"
        if self.count in (0, self.total):
            return "100 %" if self.count else "0 %"
        return f"{min(99.9, max(0.1, 100 * self.count / self.total)):.1f} %"

    def __add__(self, other: Share) -> Share:
        return Share(self.count + other.count, self.total + other.total)

    def __str__(self) -> str:
        return f"{self.count} of {self.total}"


@dataclass(frozen=True)
class EditAnswers:
    """An edit, asked as it was edited.

    Attributes:
        before, after: greedy answers of the base model and of the edited one.
        is_right: whether `after` is the target (`metrics.exact`).
    """

    edit: Edit
    before: str
    after: str
    is_right: bool


@dataclass(frozen=True)
class FormShares:
    """Edits asked in one prompt form.

    Attributes:
        name: the form, as text.
        example: one of its prompts.
        decisions: prompts which were routed to their edit.
        answers: prompts whose answer has the target in it (`metrics.mentions`).
    """

    name: str
    example: str
    decisions: Share
    answers: Share


@dataclass(frozen=True)
class OtherShares:
    """Prompts of one kind which ask for something else.

    Attributes:
        name: the kind, as text.
        example: one of them.
        left_alone: prompts which were routed to no edit.
    """

    name: str
    example: str
    left_alone: Share


@dataclass(frozen=True)
class ScoreGroup:
    """Routing scores of some prompts.

    Attributes:
        name: the prompts, as text.
        scores: of each, as `Routing.score`.
        let_through: prompts with a score of at least the threshold.
    """

    name: str
    scores: tuple[float, ...]
    let_through: Share


@dataclass(frozen=True)
class Costs:
    """Bytes in memory, but for `folder`, and milliseconds.

    Attributes:
        generator, gate, index, encoder: of each part.
        verifier: what differs between verifier and encoder; 0 without one.
        stored: `MeGModel.stored_bytes`: what the edits take.
        base: of the base model.
        folder: on the disk.
        route: median milliseconds of routing a prompt alone; None without edits.
        device: where that was measured: "cpu", "cuda".
    """

    generator: int
    gate: int
    index: int
    encoder: int
    verifier: int
    stored: int
    base: int
    folder: int
    route: float | None
    device: str


@dataclass(frozen=True)
class ModelReport:
    """What an edited model does, measured on a sample of its edits; printed as a few lines.

    Attributes:
        name: of the folder or repository, without a path.
        base: hub id of the base model, or the name of its folder.
        base_id: the hub id; None for any other base model.
        saved, measured: times, UTC in ISO 8601; `saved` is that of the last change.
        edits: N, of the model.
        seed: of the sample, and of the other prompts.
        answers: of the sampled edits.
        forms: the sampled edits asked in other words.
        others: prompts which ask for something else.
        scores: of the edits' prompts, of these in other words, and of other prompts.
        threshold: lowest score of an edit; None without edits.
        judge: what decides: "the verifier", "the similarity gate".
        same: of `others` left alone, asked of both models, answers equal to the base model's.
        changes: since the fit, in order.
        settings: hyper-parameters which differ from their defaults.
        saved_with, measured_with: versions of packages.
    """

    name: str
    base: str
    base_id: str | None
    saved: str
    measured: str
    edits: int
    seed: int
    answers: tuple[EditAnswers, ...]
    forms: tuple[FormShares, ...]
    others: tuple[OtherShares, ...]
    scores: tuple[ScoreGroup, ...]
    threshold: float | None
    judge: str
    same: Share
    costs: Costs
    changes: tuple[Change, ...]
    settings: Mapping[str, object]
    saved_with: Mapping[str, str]
    measured_with: Mapping[str, str]

    @property
    def right(self) -> Share:
        """Sampled edits with the right answer, asked as they were edited."""
        return Share(sum(each.is_right for each in self.answers), len(self.answers))

    @property
    def other_words(self) -> Share:
        """Right decisions in all prompt forms."""
        return sum((form.decisions for form in self.forms), Share(0, 0))

    @property
    def other_words_answers(self) -> Share:
        """Right answers in all prompt forms."""
        return sum((form.answers for form in self.forms), Share(0, 0))

    @property
    def left_alone(self) -> Share:
        """Prompts which ask for something else and were routed to no edit."""
        return sum((kind.left_alone for kind in self.others), Share(0, 0))

    @property
    def bytes_per_edit(self) -> float | None:
        """Of generator, gate and index; None without edits."""
        return self.costs.stored / self.edits if self.edits else None

    def __str__(self) -> str:
        per_edit, route = self.bytes_per_edit, self.costs.route
        lines = [
            ("as edited", f"{self.right} right ({self.right.percent})"),
            (
                "in other words",
                f"{self.other_words} routed to their edit ({self.other_words.percent}), "
                f"{self.other_words_answers} answers ({self.other_words_answers.percent})",
            ),
            (
                "something else",
                f"{self.left_alone} left alone ({self.left_alone.percent}), "
                f"{self.same} of these answered as before",
            ),
        ]
        if per_edit is not None and route is not None:
            lines.append(("costs", f"{size(per_edit)} an edit, {route:.1f} ms to route a prompt"))
        rows = (f"{label:15} {text}" for label, text in lines)
        return "\n".join([f"{self.name}: {self.edits} edits of {self.base}", *rows])
