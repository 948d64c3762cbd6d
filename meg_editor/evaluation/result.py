"""The result of an evaluation: metrics and answers of one method."""

from __future__ import annotations

from dataclasses import dataclass, field

from meg_editor.evaluation.metrics import GateMatrix, Pair, Scores


@dataclass(frozen=True)
class Answers:
    """Answers to Q questions: generated texts, and right tokens under teacher forcing.

    Attributes:
        texts: Q answers.
        right: AG, 1.0 or 0.0 each.
        token_accuracy: TF, in [0, 1] each.
    """

    texts: list[str]
    right: list[float]
    token_accuracy: list[float]


@dataclass(repr=False)
class Evaluation:
    """The result for one method.

    Attributes:
        scores: the six metrics.
        intervals: of the six and the Score, by resampling edits; see `metrics.intervals`.
        worst_case_generality: AG, a fact counts only if ALL its paraphrases are right.
        locality_by_kind: AG and TF for each kind of locality prompt: the output is unchanged.
        retained_by_kind: share of true answers before the edit which are still true after it.
        oracle_generality: AG Generality with the right stored neuron on every paraphrase, the
            ceiling of every generator; None where there are no neurons.
        portability_by_kind: AG on questions whose answers follow from an edit.
        trapped_by_kind: trap questions answered with the edit: negated, inverse, or about another
            relation of its subject.
        gate: None for all but a MeGModel.
        gate_scores: one per question.
        milliseconds_per_query: routing and generating neurons, over all questions; not to be
            compared between methods, some of which look up in the forward pass.

    Printed as one line; `scores`, `intervals` and the rest have the details.
    """

    scores: Scores
    intervals: dict[str, tuple[float, float]]
    worst_case_generality: float
    locality_by_kind: dict[str, Pair]
    retained_by_kind: dict[str, float]
    portability_by_kind: dict[str, float]
    trapped_by_kind: dict[str, float]
    answers: Answers = field(repr=False)
    oracle_generality: float | None = None
    gate: GateMatrix | None = None
    gate_scores: list[float] = field(default_factory=list, repr=False)
    milliseconds_per_query: float = 0.0

    def __repr__(self) -> str:
        scores = self.scores
        six = ", ".join(
            f"{name} {pair.ag:.1f}/{pair.tf:.1f}"
            for name, pair in (
                ("Rel", scores.reliability),
                ("Gen", scores.generality),
                ("Loc", scores.locality),
            )
        )
        return f"{type(self).__name__}({six}, Score {scores.score:.1f}; AG/TF, percent)"
