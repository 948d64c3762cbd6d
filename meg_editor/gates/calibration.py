"""Choose a gate's threshold on facts which are neither edited nor tested (A.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_AWAY = (0, 0.01, 0.03, 0.1, 0.2, 0.4)  # rows of the table: shares of the sweep from the choice


@dataclass(frozen=True)
class Calibration:
    """The sweep of table 16 and the threshold it leads to.

    Attributes:
        thresholds: (S,) candidate thresholds, ascending.
        accepted: (S,) share of paraphrases taken for edits (the gate's part of Generality).
        rejected: (S,) share of other queries left alone (the gate's part of Locality).
        threshold: the lowest candidate of the longest stretch with nearly the best balanced
            accuracy.
    """

    thresholds: Tensor
    accepted: Tensor
    rejected: Tensor
    threshold: float

    @property
    def balanced_accuracy(self) -> float:
        """At `threshold`, in [0, 1]."""
        return float((self.accepted + self.rejected)[self._chosen]) / 2

    @property
    def _chosen(self) -> int:
        return int((self.thresholds - self.threshold).abs().argmin())

    def to_tensors(self) -> dict[str, Tensor]:
        """For safetensors, the inverse of `from_tensors`."""
        return {
            "thresholds": self.thresholds,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "threshold": torch.tensor(self.threshold),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Calibration | None:
        """None where there is no sweep among `tensors`: the threshold was given."""
        if "thresholds" not in tensors:
            return None
        return cls(
            tensors["thresholds"],
            tensors["accepted"],
            tensors["rejected"],
            float(tensors["threshold"]),
        )

    def table(self) -> str:
        """The sweep, printable: the choice and at most 10 rows around it, close ones and far."""
        lines = [f"{'threshold':>10} {'edits kept':>11} {'others kept':>12}"]
        count = len(self.thresholds)
        away = [round(share * count) for share in _AWAY]
        rows = {self._chosen + sign * offset for offset in away for sign in (-1, 1)}
        for i in sorted(row for row in rows if 0 <= row < count):
            lines.append(
                f"{float(self.thresholds[i]):>10.3f} {100 * float(self.accepted[i]):>10.1f}% "
                f"{100 * float(self.rejected[i]):>11.1f}%"
            )
        lines.append(f"chosen {self.threshold:.3f}")
        return "\n".join(lines)


def calibrate(
    positives: Tensor, negatives: Tensor, steps: int = 201, tolerance: float = 0.01
) -> Calibration:
    """Sweep the threshold over gate scores, and take the lowest of the good ones.

    Users word questions in more ways than any calibration set does: chosen on one half of the
    reference world's calibration phrasings, the best threshold accepts as few as 78 % of the other
    half, the lowest one within a point of it 92 %.

    Args:
        positives: (M,) scores of paraphrases of facts which the gate was fitted on.
        negatives: (M',) scores of queries about anything else.
        steps: S, the number of thresholds tried.
        tolerance: balanced accuracy, in [0, 1], that may be given up for it.

    Raises:
        ValueError: either set is empty.
    """
    if not len(positives) or not len(negatives):
        raise ValueError(
            f"calibration needs paraphrases and other queries, got {len(positives)} and "
            f"{len(negatives)}; give more calibration facts or set gate_threshold"
        )
    yes, no = positives.float().cpu(), negatives.float().cpu()
    low = float(torch.minimum(yes.min(), no.min()))
    thresholds = torch.linspace(low, float(yes.max()), steps)
    accepted = (yes[None] >= thresholds[:, None]).float().mean(1)
    rejected = (no[None] < thresholds[:, None]).float().mean(1)
    balanced = accepted + rejected
    best = (balanced >= balanced.max() - 2 * tolerance).nonzero().flatten()
    gaps = (best.diff() > 1).nonzero().flatten() + 1
    stretch = max(best.tensor_split(gaps.tolist()), key=len)
    # As far from either side as keeps what the lowest of them accepts.
    equal = stretch[accepted[stretch] == accepted[stretch[0]]]
    chosen = equal[len(equal) // 2]
    return Calibration(thresholds, accepted, rejected, float(thresholds[chosen]))
