"""Reliability, Generality, Locality and Score as pure functions (section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


def normalise(answer: str) -> str:
    """The matching rule, the same for every method: outer blanks and a final full stop are cut."""
    return " ".join(answer.split()).removesuffix(".").rstrip()


def exact(answers: Sequence[str], wanted: Sequence[str]) -> list[float]:
    """AG: 1.0 where the generated answer is the wanted one after `normalise`, else 0.0."""
    return [
        float(normalise(answer) == normalise(want))
        for answer, want in zip(answers, wanted, strict=True)
    ]


def token_accuracy(
    predicted: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
) -> list[float]:
    """TF: for each pair of equally long token sequences, the share of equal tokens, in [0, 1]."""
    return [
        fmean(float(p == w) for p, w in zip(ours, theirs, strict=True))
        for ours, theirs in zip(predicted, wanted, strict=True)
    ]


def percent(values: Sequence[float]) -> float:
    """Mean of values in [0, 1] as a percentage; NaN for none."""
    return 100.0 * fmean(values) if values else float("nan")


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of percentages; 0 if any is 0."""
    if any(value <= 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


@dataclass(frozen=True)
class Pair:
    """One metric under both settings, in percent."""

    ag: float
    tf: float


@dataclass(frozen=True)
class Scores:
    """The six results of the paper's tables, in percent."""

    reliability: Pair
    generality: Pair
    locality: Pair

    @property
    def score(self) -> float:
        """Harmonic mean of the six."""
        pairs = (self.reliability, self.generality, self.locality)
        return harmonic_mean([value for pair in pairs for value in (pair.ag, pair.tf)])


@dataclass(frozen=True)
class GateMatrix:
    """What the gate made of the test queries.

    Positives are edited prompts and their paraphrases, negatives the locality prompts;
    `misrouted` are true positives that were taken for another edit.
    """

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    misrouted: int
