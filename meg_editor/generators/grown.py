"""A trained generator beside the stored neurons of edits which came after its training."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from meg_editor.generators.bank import NeuronBank
from meg_editor.generators.base import WeightGenerator
from meg_editor.generators.trainer import LearnedGenerator
from meg_editor.runtime.tensors import joined, taken


class GrownGenerator(WeightGenerator):
    """Neurons of a trained generator, and S stored ones of edits it was not trained on.

    Args:
        trained: the generator.
        neurons: (S, P), kept in float16.
        slot: (N,) of each edit its place among the stored neurons; -1: `trained` has it.

    Example:
        >>> bank = NeuronBank(dimension=2, size=1, edits=1)  # in place of a trained one
        >>> grown = GrownGenerator(bank, torch.tensor([[5.0]]), torch.tensor([-1, 0]))
        >>> grown.of_edits(torch.tensor([1, 0]), torch.eye(2)).tolist()
        [[5.0], [0.0]]
    """

    def __init__(self, trained: WeightGenerator, neurons: Tensor, slot: Tensor) -> None:
        super().__init__()
        self.trained = trained
        self.neurons: Tensor
        self.slot: Tensor
        self.register_buffer("neurons", neurons.half())
        self.register_buffer("slot", slot.int())

    def generate(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        return self.trained.generate(conditions, steps)

    def of_edits(self, rows: Tensor, anchors: Tensor) -> Tensor:
        slot = self.slot[rows].long()
        neurons = self.neurons[slot.clamp_min(0)].float() if len(self.neurons) else None
        trained = (slot < 0).nonzero()[:, 0]
        if neurons is None or len(trained):
            generated = self.trained.generate(anchors[trained])
            if neurons is None:
                return generated
            neurons[trained] = generated
        return neurons

    def stored_rows(self, count: int) -> Tensor:
        return self.slot.cpu() >= 0


def grown(
    generator: WeightGenerator,
    count: int,
    retained: Tensor,
    anchors: Tensor,
    neurons: Tensor,
    stored: Tensor,
) -> WeightGenerator:
    """The generator of a changed set of edits, without training.

    Args:
        generator: of N = `count` edits.
        retained: (R,) rows of these, in order.
        anchors, neurons: (A, E) and (A, P) of A further edits.
        stored: (A,) bool; False: the trained generator has the neuron, and needs no copy.

    Example:
        >>> bank = NeuronBank(dimension=2, size=1, edits=2)
        >>> new = torch.eye(2)[:1], torch.tensor([[5.0]]), torch.tensor([True])
        >>> bank = grown(bank, 2, torch.tensor([1]), *new)
        >>> bank.of_edits(torch.tensor([0, 1]), torch.eye(2)).tolist()
        [[0.0], [5.0]]
    """
    if isinstance(generator, NeuronBank):
        return generator.changed(retained, anchors, neurons)
    if isinstance(generator, GrownGenerator):
        trained, former, slot = generator.trained, generator.neurons, generator.slot
    else:
        device = anchors.device
        size = cast(LearnedGenerator, generator).size  # a change without new edits has none
        trained, former = generator, torch.zeros(0, size, dtype=torch.half, device=device)
        slot = torch.full((count,), -1, device=device)
    slot = taken(slot, retained).long()
    used = slot >= 0
    former = former[slot[used]]
    slot[used] = torch.arange(len(former), device=slot.device)
    stored = stored.to(slot.device)
    further = torch.full((len(neurons),), -1, device=slot.device)
    further[stored] = torch.arange(int(stored.sum()), device=slot.device) + len(former)
    neurons = joined(former, neurons[stored.to(neurons.device)])
    return GrownGenerator(trained, neurons, torch.cat([slot, further]))
