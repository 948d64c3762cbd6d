"""Training of what tells follow-ups from other turns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.svm import SVC
from torch import Tensor

from meg_editor.requests.spans import surface
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.follow_up import BIAS, GAMMA, VECTORS, WEIGHTS

_PENALTY = 3.0  # of a turn on the wrong side of the margin
_LOWEST = -0.2  # score of a turn that goes back; the margin is at -1 and 1


def train_follow_up(
    encoder: TextEncoder, back: Sequence[str], other: Sequence[str]
) -> dict[str, Tensor]:
    """Tensors of a `FollowUp`, for the adapter of a verifier of `encoder`; float16, on the CPU.

    Args:
        back: turns that go back to an earlier one.
        other: turns that do not.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> from meg_editor.routing.follow_up import FollowUp
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> tensors = train_follow_up(encoder, ["Are you sure?"], ["Thanks!"])
        >>> FollowUp.of(tensors)(encoder.encode(["Are you sure?", "Thanks!"])).tolist()
        [True, False]
    """
    texts = [surface(text) for text in (*back, *other)]
    embeddings = encoder.encode(texts).float().cpu()
    machine = SVC(C=_PENALTY, gamma=GAMMA, class_weight="balanced")
    machine.fit(embeddings.numpy(), [True] * len(back) + [False] * len(other))
    return {
        VECTORS: torch.from_numpy(machine.support_vectors_).half(),
        WEIGHTS: torch.from_numpy(machine.dual_coef_[0]).half(),
        BIAS: torch.tensor(machine.intercept_[0] - _LOWEST).half(),
    }
