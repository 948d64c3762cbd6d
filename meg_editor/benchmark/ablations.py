"""The paper's ablations: which variants a table compares, and what the paper found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meg_editor.apply import apply_meg_to_model
from meg_editor.benchmark.methods import Method
from meg_editor.hparams import MeGHyperParams

Cell = Mapping[str, Any]
# The cells of one table: (variant, edits) -> cell.
Cells = Mapping[tuple[str, int], Cell]

_SAME = 0.5  # percentage points within which two results count as equal
_ACCEPT_ALL = {"similarity": -1.0, "familiarity": 100.0}
_THRESHOLDS = {
    "similarity": (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8),
    "familiarity": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
}


@dataclass(frozen=True)
class Finding:
    """What the paper says of two entries of a table: the first is higher.

    Attributes:
        text: in words.
        higher, lower: read an entry, in percent, from the cells; given the numbers of edits,
            fewest first.
        at_most: the first is not higher by more than this, "they are about equal"; None: it is.
    """

    text: str
    higher: Callable[[Cells, Sequence[int]], float]
    lower: Callable[[Cells, Sequence[int]], float]
    at_most: float | None = None

    def verdict(self, cells: Cells, edits: Sequence[int]) -> str:
        """Whether our cells say the same."""
        gap = self.higher(cells, edits) - self.lower(cells, edits)
        if self.at_most is not None:
            agrees = gap <= self.at_most
            return f"{'as in the paper' if agrees else 'AGAINST the paper'} ({gap:+.1f})"
        if abs(gap) <= _SAME:
            return f"no difference here ({gap:+.1f})"
        return f"{'as in the paper' if gap > 0 else 'AGAINST the paper'} ({gap:+.1f})"


@dataclass(frozen=True)
class Ablation:
    """One table.

    Attributes:
        table: its number in the paper.
        title: what it shows.
        variants: the rows' names -> changes of the hyper-parameters.
        findings: the paper's.
        scaled: whether every number of edits is tried, or only the largest.
    """

    table: int
    title: str
    variants: Mapping[str, Mapping[str, Any]]
    findings: tuple[Finding, ...]
    scaled: bool = False


def ablations(hparams: MeGHyperParams) -> list[Ablation]:
    """Tables 4 to 8, 15 and 16, as changes of `hparams`."""
    open_gate = {"gate_threshold": _ACCEPT_ALL[hparams.gate]}
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
                    lambda cells, edits: _ag(cells, "without gate", edits[0], "locality"),
                    lambda cells, edits: _ag(cells, "without gate", edits[-1], "locality"),
                    at_most=5.0,
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
                _compare("reliability", "dit", "mlp", "the DiT is at least as reliable"),
            ),
            scaled=True,
        ),
        Ablation(
            8,
            "sampling steps",
            {f"{steps} steps": {"sampling_steps": steps} for steps in (100, 50, 10, 4, 1)},
            (
                Finding(
                    "100 steps are no better than 50",
                    lambda cells, edits: float(cells["100 steps", edits[-1]]["score"]),
                    lambda cells, edits: float(cells["50 steps", edits[-1]]["score"]),
                    at_most=_SAME,
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
    """MeG with some settings changed; equal settings have equal names, in whichever table."""
    settings = dataclasses.replace(hparams, **changes)
    before, after = hparams.to_dict(), settings.to_dict()
    changed = [f"{name}={after[name]}" for name in changes if after[name] != before[name]]
    return Method(" ".join(["meg", *changed]), apply_meg_to_model, settings)


def _compare(metric: str, higher: str, lower: str, text: str) -> Finding:
    return Finding(
        text,
        lambda cells, edits: _ag(cells, higher, edits[-1], metric),
        lambda cells, edits: _ag(cells, lower, edits[-1], metric),
    )


def _ag(cells: Cells, name: str, edits: int, metric: str) -> float:
    return float(cells[name, edits][metric]["ag"])
