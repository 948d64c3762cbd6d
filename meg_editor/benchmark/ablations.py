"""The paper's ablations: which variants a table compares, and what the paper found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.methods import Method
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.apply import apply_meg_to_model

# The cells of one table: (variant, edits) -> cell.
Cells = Mapping[tuple[str, int], Cell]

# A verifier refuses what the similarity retrieves: without a gate there is none.
_OPEN: dict[str, dict[str, Any]] = {
    "verified": {"gate": "similarity", "gate_threshold": -1.0},
    "similarity": {"gate_threshold": -1.0},
    "familiarity": {"gate_threshold": 100.0},
}
_THRESHOLDS = {
    "verified": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
    "similarity": (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8),
    "familiarity": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
}


@dataclass(frozen=True)
class Entry:
    """One number of a table, AG in percent.

    Attributes:
        variant: the row.
        metric: "reliability", "generality", "locality" or "score".
        edits: which of the numbers of edits: the last and largest, or 0, the smallest.
    """

    variant: str
    metric: str
    edits: int = -1

    def read(self, cells: Cells, edits: Sequence[int]) -> tuple[float, float]:
        """The number, and half its confidence interval."""
        cell = cells[self.variant, edits[self.edits]]
        if self.metric == "score":
            value, name = cell.score, "score"
        else:
            value, name = cell.metric(self.metric).ag, f"{self.metric}.ag"
        low, high = cell.intervals.get(name, (math.nan, math.nan))  # none without such questions
        return value, (high - low) / 2


@dataclass(frozen=True)
class Finding:
    """What the paper found about two entries of a table: the first is higher.

    Attributes:
        text: in words.
        max_gap: the first is not higher by more than this ("about equal"); None: it is higher.
    """

    text: str
    higher: Entry
    lower: Entry
    max_gap: float | None = None

    def verdict(self, cells: Cells, edits: Sequence[int]) -> str:
        """Whether our cells agree, as far as their confidence intervals allow to say."""
        if self.higher.edits != self.lower.edits and len(edits) == 1:
            return "not measured, at one number of edits"
        (high, one), (low, other) = (e.read(cells, edits) for e in (self.higher, self.lower))
        gap, chance = high - low, math.hypot(one, other)
        if math.isnan(gap):
            return "not measured, as these facts have no such questions"
        limit = self.max_gap or 0.0
        if abs(gap - limit) <= chance:
            verdict = "within chance here"
        else:
            agrees = gap > limit if self.max_gap is None else gap < limit
            verdict = "as in the paper" if agrees else "AGAINST the paper"
        return f"{verdict} ({gap:+.1f} ± {chance:.1f})"


@dataclass(frozen=True)
class Ablation:
    """One table.

    Attributes:
        table: its number in the paper.
        title: what it shows.
        variants: name of a row -> changes of the hyper-parameters.
        findings: the paper's.
        scaled: run every number of edits; false: only the largest.
    """

    table: int
    title: str
    variants: Mapping[str, Mapping[str, Any]]
    findings: tuple[Finding, ...]
    scaled: bool = False


def ablations(hparams: MeGHyperParams) -> list[Ablation]:
    """Tables 4 to 8, 15 and 16, as changes of `hparams`.

    Example:
        >>> [ablation.table for ablation in ablations(MeGHyperParams.preset("paper"))]
        [4, 5, 6, 7, 8, 15, 16]
    """
    open_gate = _OPEN[hparams.gate]
    thresholds = _THRESHOLDS[hparams.gate]
    loosest, tightest = f"{thresholds[0]:g}", f"{thresholds[-1]:g}"
    if hparams.gate == "familiarity":
        loosest, tightest = tightest, loosest
    return [
        Ablation(
            4,
            "text encoder",
            {name: {"encoder_tuning": name} for name in ("frozen", "mse", "infonce")},
            (
                _compare("generality", "infonce", "mse", "InfoNCE generalises better than MSE"),
                _compare("generality", "mse", "frozen", "MSE generalises better than no tuning"),
            ),
        ),
        Ablation(
            5,
            "gate",
            {"without gate": open_gate, "with gate": {}},
            (
                _compare("locality", "with gate", "without gate", "the gate raises Locality"),
                _compare("generality", "without gate", "with gate", "it costs Generality"),
            ),
        ),
        Ablation(
            6,
            "without gate, more and more edits",
            {"without gate": open_gate},
            (
                Finding(
                    "Locality falls by less than 5 points from the fewest to the most edits",
                    Entry("without gate", "locality", edits=0),
                    Entry("without gate", "locality"),
                    max_gap=5.0,
                ),
            ),
            scaled=True,
        ),
        Ablation(
            7,
            "weight generator",
            {name: {"generator": name} for name in ("mlp", "dit", "bank")},
            (
                _compare("generality", "dit", "mlp", "the DiT generalises better than the MLP"),
                _compare("reliability", "dit", "mlp", "the DiT is more reliable"),
            ),
            scaled=True,
        ),
        Ablation(
            8,
            "sampling steps",
            {
                "1 step" if steps == 1 else f"{steps} steps": {"sampling_steps": steps}
                for steps in (100, 50, 10, 4, 1)
            },
            (
                Finding(
                    "100 steps are no better than 50 by 2 points of Score",
                    Entry("100 steps", "score"),
                    Entry("50 steps", "score"),
                    max_gap=2.0,
                ),
                _compare("reliability", "50 steps", "10 steps", "10 steps are too few"),
            ),
        ),
        Ablation(
            15,
            "data augmentation: other queries give the zero neuron",
            {"without": {}, "with DA": {"generator_zero_augmentation": 0.5}},
            (
                _compare("locality", "with DA", "without", "DA raises Locality"),
                _compare("generality", "without", "with DA", "it costs Generality"),
            ),
        ),
        Ablation(
            16,
            f"threshold of the {hparams.gate} gate",
            {f"{value:g}": {"gate_threshold": value} for value in thresholds},
            (
                _compare("generality", loosest, tightest, "a looser gate generalises better"),
                _compare("locality", tightest, loosest, "a looser gate costs Locality"),
            ),
        ),
    ]


def variant(hparams: MeGHyperParams, changes: Mapping[str, Any]) -> Method:
    """MeG with some settings changed; equal settings have equal names in every table."""
    settings = hparams.changed(**changes)
    before, after = hparams.to_dict(), settings.to_dict()
    changed = [f"{name}={after[name]}" for name in changes if after[name] != before[name]]
    return Method(" ".join(["meg", *changed]), apply_meg_to_model, settings)


def _compare(metric: str, higher: str, lower: str, text: str) -> Finding:
    return Finding(text, Entry(higher, metric), Entry(lower, metric))
