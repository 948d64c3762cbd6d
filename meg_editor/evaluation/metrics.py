"""Reliability, Generality, Locality and Score as pure functions (section 5.1)."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from meg_editor.config.unicode_text import UNSPACED

METRICS = ("reliability", "generality", "locality")
_LETTER = rf"[^\W{UNSPACED}]"


def normalise(answer: str) -> str:
    """The answer without outer blanks and a final full stop, its accents composed (NFC): the
    matching rule of every method.

    Example:
        >>> normalise(" New  York. ")
        'New York'
    """
    return " ".join(unicodedata.normalize("NFC", answer).split()).removesuffix(".").rstrip()


def exact(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    """AG: 1.0 where a generated answer equals its target after `normalise`, else 0.0.

    Example:
        >>> exact(["Lima.", "in Lima"], ["Lima", "Lima"])
        [1.0, 0.0]
    """
    return [
        float(normalise(answer) == normalise(target))
        for answer, target in zip(answers, targets, strict=True)
    ]


def matches(answer: str, accepted: Sequence[str]) -> float:
    """1.0 if `answer` is one of `accepted` (a name and its aliases) after `normalise`, else 0.0.

    Example:
        >>> matches("the UK.", ["United Kingdom", "the UK"])
        1.0
    """
    return float(normalise(answer) in {normalise(one) for one in accepted})


def mentions(answer: str, target: str) -> float:
    """1.0 if `target` stands in `answer` as whole words, in upper or lower case, else 0.0.

    In scripts without blanks between words it may stand anywhere.

    Example:
        >>> mentions("The capital is Lima, of course", "lima."), mentions("Limassol", "Lima")
        (1.0, 0.0)
    """
    words = re.escape(normalise(target).casefold())
    found = re.search(rf"(?<!{_LETTER}){words}(?!{_LETTER})", normalise(answer).casefold())
    return float(found is not None)


def token_accuracy(
    predicted: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[float]:
    """TF: for each pair of equally long token sequences, the share of equal tokens, in [0, 1].

    Example:
        >>> token_accuracy([[1, 2, 3, 4]], [[1, 2, 0, 4]])
        [0.75]
    """
    return [
        fmean(float(p == w) for p, w in zip(ours, theirs, strict=True))
        for ours, theirs in zip(predicted, targets, strict=True)
    ]


def percent(values: Sequence[float]) -> float:
    """Mean of values in [0, 1] as a percentage; NaN for none.

    Example:
        >>> percent([1.0, 0.0])
        50.0
    """
    return 100.0 * fmean(values) if values else float("nan")


def worst_case(values: Sequence[tuple[int, float]]) -> float:
    """Mean over facts of the minimum over their values, in percent, from (fact, value) pairs:
    100 · E_f min_p v(f, p).

    Example:
        >>> worst_case([(0, 1.0), (0, 0.0), (1, 1.0)])
        50.0
    """
    minimum: dict[int, float] = {}
    for fact, value in values:
        minimum[fact] = min(value, minimum.get(fact, value))
    return percent(list(minimum.values()))


def intervals(
    metrics: Mapping[str, Sequence[tuple[int, float]]],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Bootstrap confidence intervals in percent, of each metric and of their harmonic mean.

    Questions about one fact stand or fall together, so whole facts are drawn: the statistic is
    Σ_f w_f Σ_p v(f, p) / Σ_f w_f n_f with w multinomial, its interval the quantiles at
    (1 ± level) / 2 over `resamples` draws.

    Args:
        metrics: name -> (fact, value in [0, 1]) pairs.

    Example:
        >>> intervals({"reliability": [(0, 1.0), (1, 1.0)]})["reliability"]
        (100.0, 100.0)
    """
    facts = sorted({fact for pairs in metrics.values() for fact, _ in pairs})
    column = {fact: index for index, fact in enumerate(facts)}
    weights = np.random.default_rng(seed).multinomial(
        len(facts), np.full(len(facts), 1 / max(len(facts), 1)), size=resamples
    )
    quantiles = ((1 - level) / 2, (1 + level) / 2)
    samples: dict[str, np.ndarray] = {}
    for name, pairs in metrics.items():
        if not pairs:
            continue
        sums, counts = np.zeros(len(facts)), np.zeros(len(facts))
        for fact, value in pairs:
            sums[column[fact]] += value
            counts[column[fact]] += 1
        with np.errstate(invalid="ignore"):  # a draw without a question has no value: 0 / 0
            samples[name] = 100 * (weights @ sums) / (weights @ counts)
    if len(samples) == len(metrics):
        values = np.stack(list(samples.values()))
        with np.errstate(divide="ignore"):
            samples["score"] = len(values) / (1 / values).sum(0)
    return {
        name: tuple(float(q) for q in np.nanquantile(values, quantiles))  # type: ignore[misc]
        for name, values in samples.items()
    }


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of percentages; 0 if any is 0, NaN if any is NaN.

    Example:
        >>> harmonic_mean([100.0, 50.0])
        66.66666666666667
    """
    if any(math.isnan(value) for value in values):
        return math.nan
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
    """The six results of the paper's tables, in percent.

    Example:
        >>> Scores(Pair(99.0, 99.0), Pair(99.0, 99.0), Pair(0.0, 99.0)).score
        0.0
    """

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
    """Confusion matrix of the gate on the test queries.

    Positives are edited prompts and their paraphrases, negatives the locality prompts;
    `misrouted` are true positives that were taken for another edit.
    """

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    misrouted: int
