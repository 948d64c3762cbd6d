"""Training of support vectors, which tell texts by their embeddings."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from sklearn.svm import SVC
from torch import Tensor

from meg_editor.data.phrasebook.labelled_texts import last_turns, system_texts
from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.requests.spans import surface
from meg_editor.requests.turns import ends_of
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.support_vectors import (
    FOLLOW_UP,
    GAMMA,
    SYSTEM_TEXT,
    SupportVectors,
)

_PENALTY = 3.0  # of a text on the wrong side of the margin, which is at -1 and 1
_LOWEST = -0.2  # score of a turn that goes back, which the bias moves to 0
_LIMITS = {"dialogue": 0.5, "system": 0.05}  # of a verifier beside them
_LOG_ODDS = 4.0  # of a system text under which questions are answered, at a score of 1


def support_vectors_of(encoder: TextEncoder, seed: int = 0) -> dict[str, Tensor]:
    """Those of the phrasebook's turns and system texts, for the adapter of a verifier; float16.

    The verifier's limits for dialogues and system texts are among them: without support vectors
    they are higher (`meg_editor.fitting.verifier_training.LIMITS`).
    """
    back, other = last_turns(Phrasebook.load(), random.Random(seed))
    turns = train_support_vectors(encoder, *([*map(surface, texts)] for texts in (back, other)))
    turns.bias -= _LOWEST
    usual, tasks = ([*map(ends_of, texts)] for texts in system_texts())
    systems = train_support_vectors(encoder, usual, tasks)
    systems.weights *= _LOG_ODDS
    systems.bias *= _LOG_ODDS
    limits = {name: torch.tensor(limit) for name, limit in _LIMITS.items()}
    tensors = turns.tensors(FOLLOW_UP) | systems.tensors(SYSTEM_TEXT) | limits
    return {name: value.half() for name, value in tensors.items()}


def train_support_vectors(
    encoder: TextEncoder, positive: Sequence[str], negative: Sequence[str]
) -> SupportVectors:
    """Support vectors that tell these texts, on the CPU.

    Args:
        positive: texts of a positive score.
        negative: the others.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> learned = train_support_vectors(encoder, ["Are you sure?"], ["Thanks!"])
        >>> (learned(encoder.encode(["Are you sure?", "Thanks!"])) > 0).tolist()
        [True, False]
    """
    embeddings = encoder.encode([*positive, *negative]).float().cpu()
    machine = SVC(C=_PENALTY, gamma=GAMMA, class_weight="balanced")
    machine.fit(embeddings.numpy(), [True] * len(positive) + [False] * len(negative))
    vectors, weights, bias = map(
        torch.from_numpy, (machine.support_vectors_, machine.dual_coef_[0], machine.intercept_)
    )
    return SupportVectors(vectors, weights, bias[0])
