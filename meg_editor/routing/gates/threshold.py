"""Choose a gate's threshold by what it does to answers (A.5, table 16)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_AWAY = (0, 0.01, 0.03, 0.1, 0.2, 0.4)  # rows of the table: shares of the sweep from the choice


@dataclass(frozen=True)
class GateOutcomes:
    """Gate scores of M queries, and whether either decision gives the right answer.

    Attributes:
        score: (M,) of the gate.
        accepted: (M,) whether the answer is right if the query is taken for an edit.
        rejected: (M,) whether it is right if the query is left alone.

    Example:
        >>> yes, no = torch.tensor([True, True]), torch.tensor([False, False])
        >>> GateOutcomes(torch.tensor([0.2, 0.8]), yes, no).right(torch.tensor([0.0, 0.5])).tolist()
        [1.0, 0.5]
    """

    score: Tensor
    accepted: Tensor
    rejected: Tensor

    def right(self, thresholds: Tensor) -> Tensor:
        """The share of right answers, in [0, 1], at each of S thresholds: (S,)."""
        accept = self.score[None] >= thresholds[:, None]
        return torch.where(accept, self.accepted[None], self.rejected[None]).float().mean(1)


@dataclass(frozen=True, repr=False)
class Calibration:
    """The sweep of table 16 and the threshold it leads to.

    By answers, or in the quick way by routing alone: then a paraphrase counts as answered with the
    edit where it is routed to it, and any other query as answered as before where it is to none.

    Attributes:
        thresholds: (S,) candidate thresholds, ascending.
        generality: (S,) share of paraphrases answered with the edit, in [0, 1].
        locality: (S,) share of other queries answered as before, in [0, 1].
        threshold: the chosen one.
        state_weight: of the hidden states in the score that was swept.
    """

    thresholds: Tensor
    generality: Tensor
    locality: Tensor
    threshold: float
    state_weight: float = 0.0

    @property
    def best(self) -> float:
        """The highest mean of Generality and Locality at any threshold, in [0, 1]."""
        return float((self.generality + self.locality).max()) / 2

    def error(self, paraphrases: int, others: int) -> float:
        """The standard error of `best`, from so many queries of either kind."""
        at = int((self.generality + self.locality).argmax())
        shares = (float(self.generality[at]), paraphrases), (float(self.locality[at]), others)
        return math.sqrt(sum(share * (1 - share) / count for share, count in shares)) / 2

    @property
    def balance(self) -> float:
        """Mean of Generality and Locality at `threshold`, in [0, 1]."""
        return float((self.generality + self.locality)[self._chosen]) / 2

    @property
    def _chosen(self) -> int:
        return int((self.thresholds - self.threshold).abs().argmin())

    def to_tensors(self) -> dict[str, Tensor]:
        """For safetensors, the inverse of `from_tensors`."""
        return {
            "thresholds": self.thresholds,
            "generality": self.generality,
            "locality": self.locality,
            "threshold": torch.tensor(self.threshold),
            "state_weight": torch.tensor(self.state_weight),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Calibration | None:
        """None where there is no sweep among `tensors`: the threshold was given."""
        if "thresholds" not in tensors:
            return None
        return cls(
            tensors["thresholds"],
            tensors["generality"],
            tensors["locality"],
            float(tensors["threshold"]),
            float(tensors["state_weight"]),
        )

    def table(self) -> str:
        """The sweep, printable: the choice and at most 10 rows around it, close ones and far."""
        lines = [f"{'threshold':>10} {'Generality':>11} {'Locality':>9}"]
        count = len(self.thresholds)
        away = [round(share * count) for share in _AWAY]
        rows = {self._chosen + sign * offset for offset in away for sign in (-1, 1)}
        for i in sorted(row for row in rows if 0 <= row < count):
            lines.append(
                f"{float(self.thresholds[i]):>10.3f} {100 * float(self.generality[i]):>10.1f}% "
                f"{100 * float(self.locality[i]):>8.1f}%"
            )
        lines.append(f"chosen {self.threshold:.3f}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"Calibration(threshold={self.threshold:.3f}, balance={self.balance:.3f}, "
            f"state_weight={self.state_weight})"
        )


def calibrate(
    paraphrases: GateOutcomes, others: GateOutcomes, steps: int = 201, tolerance: float = 0.0125
) -> Calibration:
    """Sweep the threshold and take the lowest of those nearly as good as the best.

    The lowest, because users phrase questions in more ways than any calibration set does; nearly as
    good in the mean of Generality and Locality, both of which count answers: a neuron which does
    not fire on a query is no harm to it, however it was routed.

    Args:
        paraphrases: of facts which the gate was fitted on.
        others: queries about anything else.
        steps: S, the number of thresholds tried.
        tolerance: of the mean of Generality and Locality, in [0, 1].

    Raises:
        ValueError: there are no paraphrases or no other queries.

    Example:
        >>> yes, no = torch.tensor([True, True]), torch.tensor([False, False])
        >>> paraphrases = GateOutcomes(torch.tensor([0.8, 0.9]), yes, no)
        >>> others = GateOutcomes(torch.tensor([0.1, 0.2]), no, yes)
        >>> calibration = calibrate(paraphrases, others)
        >>> 0.2 < calibration.threshold <= 0.8, calibration.balance
        (True, 1.0)
    """
    yes, no = paraphrases.score, others.score
    if not len(yes) or not len(no):
        raise ValueError(
            f"calibration needs paraphrases and other queries, got {len(yes)} and {len(no)}; "
            "give more calibration facts or set gate_threshold"
        )
    low = float(torch.minimum(yes.min(), no.min()))
    thresholds = torch.linspace(low, float(yes.max()), steps)
    generality, locality = paraphrases.right(thresholds), others.right(thresholds)
    balance = (generality + locality) / 2
    best = (balance >= balance.max() - tolerance).nonzero().flatten()
    gaps = (best.diff() > 1).nonzero().flatten() + 1
    stretch = max(best.tensor_split(gaps.tolist()), key=len)
    # As far from either side as keeps what the lowest of them reaches.
    equal = stretch[generality[stretch] == generality[stretch[0]]]
    chosen = equal[len(equal) // 2]
    return Calibration(thresholds, generality, locality, float(thresholds[chosen]))
