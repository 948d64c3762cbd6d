"""Consolidation: a weight generator is trained on all neurons, and takes the place of copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.edits.edition import Edition
from meg_editor.generators import GENERATORS
from meg_editor.generators.auto import dit_bytes
from meg_editor.generators.grown import GrownGenerator
from meg_editor.runtime.tensors import chunks

_CHUNK = 1024  # edits whose neurons are generated at once

# Neurons (R, P) of the edits at R rows -> how right each is for its prompt, and in each context:
# 2 where it answers with the target, 1 where the answer begins with it, else 0.
Check = Callable[[Tensor, Sequence[int]], list[list[int]]]


@dataclass(frozen=True, repr=False)
class Consolidation:
    """What a consolidation did; its repr is a line.

    Attributes:
        edits: N.
        generated: of these, whose neuron the trained generator gives.
        bytes_before, bytes_after: of stored neurons, keys and generator.
        seconds: run time.

    Example:
        >>> Consolidation(1024, 1000, 2_000_000, 900_000, 61.0)
        1000 of 1024 edits generated, 24 stored: 2.0 MB -> 0.9 MB in 61 s
    """

    edits: int
    generated: int
    bytes_before: int
    bytes_after: int
    seconds: float

    def __repr__(self) -> str:
        before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
        return (
            f"{self.generated} of {self.edits} edits generated, {self.edits - self.generated} "
            f"stored: {before:.1f} MB -> {after:.1f} MB in {self.seconds:.0f} s"
        )


def consolidated(
    edition: Edition, hparams: MeGHyperParams, size: int, check: Check
) -> tuple[Edition, Consolidation]:
    """The edition with a newly trained generator, where that takes fewer bytes.

    An edit whose stored neuron is more right anywhere than the generated one keeps it, so that no
    answer is lost.

    Args:
        size: P, of a neuron.
    """
    start = time.perf_counter()
    count, anchors = len(edition.edits), edition.index.anchors.float()
    before = edition.generator.stored_bytes

    def done(result: Edition, generated: int) -> tuple[Edition, Consolidation]:
        after = result.generator.stored_bytes
        seconds = time.perf_counter() - start
        return result, Consolidation(count, generated, before, after, seconds)

    already = sum(not edit.stored for edit in edition.edits)
    if not count or dit_bytes(hparams, anchors.shape[1], size) >= before:
        return done(edition, already)
    parts = chunks(count, _CHUNK)
    neurons = edition.neurons(range(count))
    generator = GENERATORS["dit"].build(hparams, anchors.shape[1], size, count).to(anchors.device)
    generator.fit(anchors, neurons, seed=hparams.seed)
    lost: list[int] = []
    for rows in parts:
        right = dict(zip(rows, check(generator.generate(anchors[list(rows)]), rows), strict=True))
        failing = [row for row in rows if min(right[row]) < 2]
        if failing:
            for row, was in zip(failing, check(neurons[failing], failing), strict=True):
                if any(had > has for had, has in zip(was, right[row], strict=True)):
                    lost.append(row)
    slot = torch.full((count,), -1, device=anchors.device)
    slot[lost] = torch.arange(len(lost), device=anchors.device)
    grown = GrownGenerator(generator, neurons[lost], slot)
    if grown.stored_bytes >= before:
        return done(edition, already)
    return done(edition.generated_by(grown), count - len(lost))
