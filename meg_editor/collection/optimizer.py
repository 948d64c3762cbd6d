"""Gradient descent on the neurons of many facts at once, each on its own.

A fact enters the batch when there is room, and leaves it when it is learned or its steps are used
up; what the blocks below the neuron make of it is computed once, when it enters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron import NeuronHook
from meg_editor.lm.tokens import Batch, Example, by_length, means, target_logits
from meg_editor.runtime.precision import bfloat16

_PASSES = 8  # forward passes in a step over all facts: rows of like length share one
_ROOM = 4  # new facts enter when a quarter of the places is free
_SLOWER, _FASTER = 0.7, 1.3  # a fact whose loss rose, or fell, changes its pace by this


def descend(
    rows_at_once: int,
    model: Any,
    hook: NeuronHook,
    start: Tensor,
    facts: Sequence[Sequence[Example]],
    rate: float,
    budget: int,
    hparams: MeGHyperParams,
    tell: Callable[[int], Any] = lambda finished: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """SGD from `start` (P,) on the neurons of M facts, each shown in the same number of contexts.

    With `collection_clip` each fact has a pace of its own, of at most `rate`.

    Args:
        rows_at_once: rows of a forward pass at most.
        rate, budget: the learning rate, and the steps of a fact at most.
        tell: is told how many facts were finished.

    Returns:
        The neurons (M, P), (M,) whether each is learned (in every context the target's tokens are
        the likeliest, with a loss below the margin), and (M,) the steps taken; all on the CPU.
    """
    neurons = start.repeat(len(facts), 1)
    learned = torch.zeros(len(facts), dtype=torch.bool)
    taken = torch.zeros(len(facts), dtype=torch.long)
    # Long ones first: what does not fit into memory shows at once.
    waiting = sorted(range(len(facts)), key=lambda fact: max(map(len, facts[fact])))
    places = max(1, _PASSES * rows_at_once // len(facts[0])) if facts else 0
    steps = 1 if model.device.type == "cpu" else 5  # to look at who is finished waits for a GPU
    pool = _Pool(model, hook, start, rows_at_once, hparams)
    while waiting or pool.members:
        if waiting and len(pool.members) <= places - max(1, places // _ROOM):
            free = min(places - len(pool.members), len(waiting))
            pool.enter({fact: facts[fact] for fact in (waiting.pop() for _ in range(free))})
        for _ in range(steps):
            pool.step(rate, budget)
        finished = (pool.done | (pool.taken >= budget)).nonzero().flatten().tolist()
        if finished:
            members = [pool.members[place] for place in finished]
            neurons[members] = pool.neurons[finished].cpu()
            learned[members] = pool.done[finished].cpu()
            taken[members] = pool.taken[finished].cpu()
            pool.leave(finished)
            tell(len(members))
    return neurons, learned, taken


@dataclass(frozen=True)
class Rows:
    """R rows of like length, which go through the model together.

    Attributes:
        batch: their tokens.
        stream: (R, T, D), what enters the block of the neuron.
        owner: (R,) whose neuron each row gets.
    """

    batch: Batch
    stream: Tensor
    owner: Tensor


def row_losses(
    model: Any, hook: NeuronHook, upper: LayersFrom, rows: Rows, neurons: Tensor, half: bool
) -> tuple[Tensor, Tensor]:
    """The mean loss over the target of each of R rows under its own of the neurons (M, P).

    Returns (R,) float, and (R,) how many of the target's tokens are not the likeliest.
    """
    own = hook.attached(neurons[rows.owner])
    with own, upper.fed(rows.stream), bfloat16(rows.stream.device, half):
        logits, wanted, where = target_logits(model, rows.batch)
    loss = F.cross_entropy(logits, wanted, reduction="none")
    wrong = (logits.argmax(-1) != wanted).float()
    count = len(rows.owner)
    zeros = torch.zeros(count, device=where.device)
    return means(loss, where, count), zeros.index_add(0, where, wrong)


class _Pool:
    """The A facts which are optimised now."""

    def __init__(
        self,
        model: Any,
        hook: NeuronHook,
        start: Tensor,
        rows_at_once: int,
        hparams: MeGHyperParams,
    ) -> None:
        self.model, self.hook, self.hparams = model, hook, hparams
        self.rows_at_once = rows_at_once
        self.start = start.to(model.device)
        self.upper = LayersFrom(model, hook.spec.layer)
        self.members: list[int] = []
        self.neurons = self.start[None][:0]  # (A, P)
        self.taken = torch.zeros(0, dtype=torch.long, device=model.device)
        self.done = torch.zeros(0, dtype=torch.bool, device=model.device)
        self.pace = torch.ones(0, device=model.device)
        self.loss = torch.zeros(0, device=model.device)  # before the last step
        self._examples: list[list[Example]] = []  # (A, contexts)
        self._streams: list[list[Tensor]] = []  # (A, contexts) of (T, D)
        self._passes: list[Rows] = []

    def enter(self, facts: dict[int, Sequence[Example]]) -> None:
        """New facts, by number; all start at the same neuron."""
        flat = [example for examples in facts.values() for example in examples]
        streams = self.upper.streams(flat, self.rows_at_once)
        contexts = len(flat) // len(facts)
        self.members += facts
        self._examples += [list(examples) for examples in facts.values()]
        self._streams += [streams[i : i + contexts] for i in range(0, len(flat), contexts)]
        self.neurons = torch.cat([self.neurons, self.start.repeat(len(facts), 1)])
        self.taken = torch.cat([self.taken, self.taken.new_zeros(len(facts))])
        self.done = torch.cat([self.done, self.done.new_zeros(len(facts))])
        self.pace = torch.cat([self.pace, self.pace.new_ones(len(facts))])
        self.loss = torch.cat([self.loss, self.loss.new_full((len(facts),), math.inf)])
        self._arrange()

    def leave(self, places: list[int]) -> None:
        """Those at these places are finished."""
        gone = set(places)
        kept = [place for place in range(len(self.members)) if place not in gone]
        self.members = [self.members[place] for place in kept]
        self._examples = [self._examples[place] for place in kept]
        self._streams = [self._streams[place] for place in kept]
        self.neurons, self.taken, self.done, self.pace, self.loss = (
            values[kept] for values in (self.neurons, self.taken, self.done, self.pace, self.loss)
        )
        self._arrange()

    def step(self, rate: float, budget: int) -> None:
        """One step for all facts which are not finished."""
        contexts = len(self._examples[0])
        gradient = torch.zeros_like(self.neurons)
        loss, wrong = (torch.zeros(len(self.members), device=gradient.device) for _ in range(2))
        for rows in self._passes:
            neurons = self.neurons.detach().requires_grad_(True)
            half = self.hparams.collection_bfloat16
            losses, misses = row_losses(self.model, self.hook, self.upper, rows, neurons, half)
            gradient += torch.autograd.grad(losses.sum() / contexts, neurons)[0]
            loss.index_add_(0, rows.owner, losses.detach() / contexts)
            wrong.index_add_(0, rows.owner, misses)
        self.done = (wrong == 0) & (loss < self.hparams.collection_loss_threshold)
        going = ~self.done & (self.taken < budget)
        if (longest := self.hparams.collection_clip) is not None:
            # A loss which is far from its margin is steep; near it a higher rate is needed, which
            # some facts cannot bear.
            self.pace = (self.pace * torch.where(loss > self.loss, _SLOWER, _FASTER)).clamp_max(1.0)
            length = gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
            gradient = gradient * (longest / length).clamp_max(1.0) * self.pace.unsqueeze(1)
            self.loss = loss
        if self.hparams.collection_schedule == "cosine":
            progress = self.taken.unsqueeze(1) / budget
            gradient = gradient * 0.5 * (1 + torch.cos(math.pi * progress))
        self.neurons = torch.where(going.unsqueeze(1), self.neurons - rate * gradient, self.neurons)
        self.taken = self.taken + going

    def _arrange(self) -> None:
        """Put rows of like length together."""
        owners = [place for place, rows in enumerate(self._examples) for _ in rows]
        examples = [example for rows in self._examples for example in rows]
        streams = [stream for rows in self._streams for stream in rows]
        device = self.start.device
        self._passes = [
            Rows(
                Batch.of([examples[row] for row in chunk], device),
                pad_sequence([streams[row] for row in chunk], batch_first=True),
                torch.tensor([owners[row] for row in chunk], device=device),
            )
            for chunk in by_length([len(example) for example in examples], self.rows_at_once)
        ]
