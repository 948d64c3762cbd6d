"""Gradient descent on the neurons of many facts at once, each on its own (section 4.1 c.1).

Continuous batching: converged facts are evicted and pending ones take their slots. The residual
stream that enters the neuron's block is computed once per fact, on admission.
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
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import Batch, Example, by_length, means, target_logits
from meg_editor.runtime.precision import bfloat16

_PASSES = 8  # forward passes in a step over all facts: rows of like length share one
_REFILL = 4  # pending facts are admitted when a quarter of the slots is free
_SLOWER, _FASTER = 0.7, 1.3  # factors of a fact's step size after its loss rose, or fell


@dataclass(frozen=True)
class Descent:
    """Outcome of `optimise` for M facts, on the CPU.

    Attributes:
        neurons: (M, P).
        converged: (M,) bool: in every context the target's tokens are the most likely ones, with a
            loss below the threshold.
        steps: (M,) SGD steps taken.
    """

    neurons: Tensor
    converged: Tensor
    steps: Tensor


def optimise(
    rows_at_once: int,
    model: CausalLM,
    hook: NeuronHook,
    start: Tensor,
    facts: Sequence[Sequence[Example]],
    lr: float,
    max_steps: int,
    hparams: MeGHyperParams,
    half: bool = False,
    progress: Callable[[int], Any] = lambda finished: None,
) -> Descent:
    """SGD from `start` (P,) on the neurons of M facts, each in the same number of contexts.

    With `collection_clip` each fact has a step size of its own, of at most `lr`.

    Args:
        rows_at_once: most rows of a forward pass.
        half: run the model under bfloat16 autocast.
        progress: called with the number of facts that were just finished.
    """
    neurons = start.repeat(len(facts), 1)
    converged = torch.zeros(len(facts), dtype=torch.bool)
    steps = torch.zeros(len(facts), dtype=torch.long)
    # Long ones first: what does not fit into memory shows at once.
    pending = sorted(range(len(facts)), key=lambda fact: max(map(len, facts[fact])))
    slots = max(1, _PASSES * rows_at_once // len(facts[0])) if facts else 0
    between = 1 if model.device.type == "cpu" else 5  # a look at who is finished waits for a GPU
    batch = ContinuousBatch(model, hook, start, rows_at_once, hparams, half)
    while pending or batch.facts:
        if pending and len(batch.facts) <= slots - max(1, slots // _REFILL):
            free = min(slots - len(batch.facts), len(pending))
            batch.admit({fact: facts[fact] for fact in (pending.pop() for _ in range(free))})
        for _ in range(between):
            batch.step(lr, max_steps)
        finished = (batch.converged | (batch.steps >= max_steps)).nonzero().flatten().tolist()
        if finished:
            numbers = [batch.facts[slot] for slot in finished]
            neurons[numbers] = batch.neurons[finished].cpu()
            converged[numbers] = batch.converged[finished].cpu()
            steps[numbers] = batch.steps[finished].cpu()
            batch.evict(finished)
            progress(len(numbers))
    return Descent(neurons, converged, steps)


@dataclass(frozen=True)
class Rows:
    """R rows of like length, which share a forward pass.

    Attributes:
        batch: their tokens.
        stream: (R, T, D), the residual stream that enters the neuron's block.
        owner: (R,) whose neuron each row gets.
    """

    batch: Batch
    stream: Tensor
    owner: Tensor


def row_losses(
    model: CausalLM, hook: NeuronHook, layers: LayersFrom, rows: Rows, neurons: Tensor, half: bool
) -> tuple[Tensor, Tensor]:
    """The mean loss over the target of each of R rows under its neuron of (M, P).

    Returns (R,) float, and (R,) how many of the target's tokens are not the most likely ones.
    """
    attached = hook.attached(neurons[rows.owner])
    with attached, layers.injected(rows.stream), bfloat16(rows.stream.device, half):
        logits, targets, where = target_logits(model, rows.batch)
    loss = F.cross_entropy(logits, targets, reduction="none")
    wrong = (logits.argmax(-1) != targets).float()
    count = len(rows.owner)
    zeros = torch.zeros(count, device=where.device)
    return means(loss, where, count), zeros.index_add(0, where, wrong)


class ContinuousBatch:
    """Gradient descent on many facts at once; A facts hold a slot.

    Attributes:
        facts: numbers of the facts in their slots.
        neurons: (A, P).
        converged: (A,) bool, by the last step.
        steps: (A,) taken.
    """

    def __init__(
        self,
        model: CausalLM,
        hook: NeuronHook,
        start: Tensor,
        rows_at_once: int,
        hparams: MeGHyperParams,
        half: bool = False,
    ) -> None:
        self.model, self.hook, self.hparams, self.half = model, hook, hparams, half
        self.rows_at_once = rows_at_once
        self.start = start.to(model.device)
        self.layers = LayersFrom(model, hook.spec.layer)
        self.facts: list[int] = []
        self.neurons = self.start[None][:0]
        self.steps = torch.zeros(0, dtype=torch.long, device=model.device)
        self.converged = torch.zeros(0, dtype=torch.bool, device=model.device)
        self._step_size = torch.ones(0, device=model.device)  # as a factor of the learning rate
        self._loss = torch.zeros(0, device=model.device)  # before the last step
        self._examples: list[list[Example]] = []  # (A, contexts)
        self._streams: list[list[Tensor]] = []  # (A, contexts) of (T, D)
        self._passes: list[Rows] = []

    def admit(self, facts: dict[int, Sequence[Example]]) -> None:
        """Give slots to these facts, by number; all start at the same neuron."""
        flat = [example for examples in facts.values() for example in examples]
        streams = self.layers.residual_streams(flat, self.rows_at_once)
        contexts, count = len(flat) // len(facts), len(facts)
        self.facts += facts
        self._examples += [list(examples) for examples in facts.values()]
        self._streams += [streams[i : i + contexts] for i in range(0, len(flat), contexts)]
        self.neurons = torch.cat([self.neurons, self.start.repeat(count, 1)])
        self.steps = torch.cat([self.steps, self.steps.new_zeros(count)])
        self.converged = torch.cat([self.converged, self.converged.new_zeros(count)])
        self._step_size = torch.cat([self._step_size, self._step_size.new_ones(count)])
        self._loss = torch.cat([self._loss, self._loss.new_full((count,), math.inf)])
        self._arrange()

    def evict(self, slots: list[int]) -> None:
        """Free these slots."""
        gone = set(slots)
        left = [slot for slot in range(len(self.facts)) if slot not in gone]
        self.facts = [self.facts[slot] for slot in left]
        self._examples = [self._examples[slot] for slot in left]
        self._streams = [self._streams[slot] for slot in left]
        self.neurons, self.steps, self.converged, self._step_size, self._loss = (
            values[left]
            for values in (
                self.neurons,
                self.steps,
                self.converged,
                self._step_size,
                self._loss,
            )
        )
        self._arrange()

    def step(self, lr: float, max_steps: int) -> None:
        """One SGD step for all facts that have neither converged nor used up their steps."""
        contexts = len(self._examples[0])
        gradient = torch.zeros_like(self.neurons)
        loss, wrong = (torch.zeros(len(self.facts), device=gradient.device) for _ in range(2))
        for rows in self._passes:
            neurons = self.neurons.detach().requires_grad_(True)
            losses, misses = row_losses(
                self.model, self.hook, self.layers, rows, neurons, self.half
            )
            gradient += torch.autograd.grad(losses.sum() / contexts, neurons)[0]
            loss.index_add_(0, rows.owner, losses.detach() / contexts)
            wrong.index_add_(0, rows.owner, misses)
        self.converged = (wrong == 0) & (loss < self.hparams.collection_loss_threshold)
        active = ~self.converged & (self.steps < max_steps)
        if (max_norm := self.hparams.collection_clip) is not None:
            # A loss far above its threshold is steep; near it a higher rate is needed, which some
            # facts cannot bear.
            factor = torch.where(loss > self._loss, _SLOWER, _FASTER)
            self._step_size = (self._step_size * factor).clamp_max(1.0)
            norm = gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
            gradient = gradient * (max_norm / norm).clamp_max(1.0) * self._step_size.unsqueeze(1)
            self._loss = loss
        if self.hparams.collection_schedule == "cosine":
            progress = self.steps.unsqueeze(1) / max_steps
            gradient = gradient * 0.5 * (1 + torch.cos(math.pi * progress))
        self.neurons = torch.where(active.unsqueeze(1), self.neurons - lr * gradient, self.neurons)
        self.steps = self.steps + active

    def _arrange(self) -> None:
        """Put rows of like length into one pass."""
        owners = [slot for slot, rows in enumerate(self._examples) for _ in rows]
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
