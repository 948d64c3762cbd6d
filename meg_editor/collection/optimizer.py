"""SGD on the neurons of many independent facts at once (section 4.1 c.1).

Continuous batching: converged facts are evicted, pending ones take their slots. The residual stream
at the edited layer is computed once per fact, on admission.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.devices import input_device
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import Batch, Example, means, target_logits

_PASSES = 8  # forward passes per step: rows of similar length share one
_REFILL = 4  # pending facts are admitted when 1/4 of the slots is free
_LONGEST = 1.0  # step of the "scaled" optimizer, in units: at the start losses say little


@dataclass(frozen=True)
class Descent:
    """Result of `optimise` for M facts, on the CPU.

    Attributes:
        neurons: (M, P).
        converged: (M,) bool: in every context the target is the greedy answer, with a loss below
            the threshold.
        steps: (M,) SGD steps taken.
    """

    neurons: Tensor
    converged: Tensor
    steps: Tensor


def optimise(
    rows_at_once: int,
    model: CausalLM,
    hook: NeuronHook,
    starts: Tensor,
    facts: Sequence[Sequence[Example]],
    lr: float,
    max_steps: int,
    hparams: MeGHyperParams,
    units: Tensor | None = None,
    progress: Callable[[int], Any] = lambda finished: None,
) -> Descent:
    """SGD on the neurons of M facts, with continuous batching.

    Where every fact has a start of its own, those that have converged there take no step.

    With `collection_optimizer: scaled` a step is `lr` times Polyak's, which ends at a loss of 0 if
    the loss falls in a straight line: L·g / |g|² for a loss L with gradient g. It needs no rate of
    the model's own.

    Args:
        rows_at_once: rows of a forward pass.
        starts: initial neuron (P,) of all facts, or (M, P) of each.
        facts: M facts, each as examples in its contexts.
        lr: learning rate.
        max_steps: SGD steps of a fact.
        hparams: optimizer, schedule and loss threshold.
        units: (P,) of `starts` and of the steps; default: ones.
        progress: called with the number of facts that just finished.

    Example:
        >>> from meg_editor import load_model
        >>> from meg_editor.collection.collect import shared_start
        >>> from meg_editor.lm.neuron import NeuronSpec
        >>> from meg_editor.lm.tokens import encode_example
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> spec = NeuronSpec.from_hparams(model, hparams)
        >>> start = shared_start(spec, seed=0)
        >>> facts = [[encode_example(tokenizer, "2 plus 2 is", "5")]]
        >>> with NeuronHook(model, spec) as hook:
        ...     descent = optimise(8, model, hook, start, facts, 0.5, 3, hparams)
        >>> descent.neurons.shape == (1, spec.size), descent.steps.tolist()
        (True, [3])
    """
    units = torch.ones(starts.shape[-1]) if units is None else units
    neurons = (starts * units).expand(len(facts), -1).clone()
    converged = torch.zeros(len(facts), dtype=torch.bool)
    steps = torch.zeros(len(facts), dtype=torch.long)
    # Longest first, so that running out of memory shows at once.
    pending = sorted(range(len(facts)), key=lambda fact: max(map(len, facts[fact])))
    slots = max(1, _PASSES * rows_at_once // max(map(len, facts))) if facts else 0
    # Steps between checks for converged facts, each of which waits for the GPU.
    check_every = 1 if input_device(model).type == "cpu" else 5
    batch = ContinuousBatch(model, hook, starts, rows_at_once, hparams, units)
    while pending or batch.facts:
        admitted = pending and len(batch.facts) <= slots - max(1, slots // _REFILL)
        if admitted:
            free = min(slots - len(batch.facts), len(pending))
            batch.admit({fact: facts[fact] for fact in (pending.pop() for _ in range(free))})
        if admitted and starts.dim() > 1:
            batch.check()
        else:
            for _ in range(check_every):
                batch.step(lr, max_steps)
        finished = (batch.converged | (batch.steps >= max_steps)).nonzero().flatten().tolist()
        if finished:
            numbers = [batch.facts[slot] for slot in finished]
            neurons[numbers] = batch.neurons[finished].cpu() * units
            converged[numbers] = batch.converged[finished].cpu()
            steps[numbers] = batch.steps[finished].cpu()
            batch.evict(finished)
            progress(len(numbers))
    return Descent(neurons, converged, steps)


@dataclass(frozen=True)
class Rows:
    """R rows of similar length, which share a forward pass.

    Attributes:
        batch: their tokens.
        stream: (R, T, D), residual stream at the input of the edited layer.
        owner: (R,) index of the neuron of each row.
    """

    batch: Batch
    stream: Tensor
    owner: Tensor


def row_losses(
    model: CausalLM, hook: NeuronHook, layers: LayersFrom, rows: Rows, neurons: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of each of R rows under its neuron.

    Args:
        neurons: (M, P), assigned by `rows.owner`.

    Returns:
        (R,) mean cross-entropy of the target's tokens, (R,) number of them that are not the
        greedy ones.
    """
    with hook.attached(neurons[rows.owner]), layers.injected(rows.stream):
        logits, targets, where = target_logits(model, rows.batch)
    loss = F.cross_entropy(logits, targets, reduction="none")
    wrong = (logits.argmax(-1) != targets).float()
    count = len(rows.owner)
    zeros = torch.zeros(count, device=where.device)
    return means(loss, where, count), zeros.index_add(0, where, wrong)


class ContinuousBatch:
    """SGD on many facts at once: converged ones are evicted, pending ones take their slots.

    Attributes:
        facts: index of the fact in each of A slots.
        neurons: (A, P), in units.
        converged: (A,) bool, by the last step.
        steps: (A,) SGD steps taken.
    """

    def __init__(
        self,
        model: CausalLM,
        hook: NeuronHook,
        starts: Tensor,
        rows_at_once: int,
        hparams: MeGHyperParams,
        units: Tensor,
    ) -> None:
        self.model, self.hook, self.hparams = model, hook, hparams
        self.rows_at_once = rows_at_once
        device = input_device(model)
        self.units = units.to(device)
        self.starts = starts.to(device)
        self.layers = LayersFrom(model, hook.spec.layer)
        self.facts: list[int] = []
        self.neurons = self.starts.reshape(-1, self.starts.shape[-1])[:0]
        self.steps = torch.zeros(0, dtype=torch.long, device=device)
        self.converged = torch.zeros(0, dtype=torch.bool, device=device)
        self._examples: list[list[Example]] = []  # (A, contexts of a fact)
        self._streams: list[list[Tensor]] = []  # the same, of (T, D)
        self._contexts = torch.zeros(0, dtype=torch.long, device=device)  # (A,)
        self._passes: list[Rows] = []

    def admit(self, facts: dict[int, Sequence[Example]]) -> None:
        """Give slots to facts (index -> examples), at their initial neurons."""
        flat = [example for examples in facts.values() for example in examples]
        streams = self.layers.residual_streams(flat, self.rows_at_once)
        count = len(facts)
        self.facts += facts
        self._examples += [list(examples) for examples in facts.values()]
        ends = accumulate(map(len, facts.values()), initial=0)
        self._streams += [streams[start:end] for start, end in pairwise(ends)]
        starts = self.starts[list(facts)] if self.starts.dim() > 1 else self.starts
        self.neurons = torch.cat([self.neurons, starts.expand(count, -1)])
        self.steps = torch.cat([self.steps, self.steps.new_zeros(count)])
        self.converged = torch.cat([self.converged, self.converged.new_zeros(count)])
        self._arrange()

    def evict(self, slots: list[int]) -> None:
        """Free these slots."""
        evicted = set(slots)
        retained = [slot for slot in range(len(self.facts)) if slot not in evicted]
        self.facts = [self.facts[slot] for slot in retained]
        self._examples = [self._examples[slot] for slot in retained]
        self._streams = [self._streams[slot] for slot in retained]
        self.neurons, self.steps, self.converged = (
            values[retained] for values in (self.neurons, self.steps, self.converged)
        )
        self._arrange()

    def step(self, lr: float, max_steps: int) -> None:
        """One SGD step of all facts that have neither converged nor taken `max_steps`."""
        gradient = torch.zeros_like(self.neurons)
        loss = self._losses(gradient)
        active = ~self.converged & (self.steps < max_steps)
        step = lr * gradient
        if self.hparams.collection_optimizer == "scaled":
            norm = gradient.norm(dim=1).clamp_min(1e-12)
            length = (lr * loss / norm).clamp_max(_LONGEST)
            step = gradient * (length / norm).unsqueeze(1)
        if self.hparams.collection_schedule == "cosine":
            progress = self.steps.unsqueeze(1) / max_steps
            step = step * 0.5 * (1 + torch.cos(math.pi * progress))
        self.neurons = torch.where(active.unsqueeze(1), self.neurons - step, self.neurons)
        self.steps = self.steps + active

    @torch.no_grad()
    def check(self) -> None:
        """Find out which facts have converged, without a step."""
        self._losses()

    def _losses(self, gradient: Tensor | None = None) -> Tensor:
        """Loss (A,) of each fact, the mean over its contexts; sets `converged`, and adds to its
        `gradient` (A, P).
        """
        loss, wrong = (torch.zeros(len(self.facts), device=self.units.device) for _ in range(2))
        for rows in self._passes:
            neurons = self.neurons.detach().requires_grad_(gradient is not None)
            losses, misses = row_losses(
                self.model, self.hook, self.layers, rows, neurons * self.units
            )
            losses = losses / self._contexts[rows.owner]
            if gradient is not None:
                gradient += torch.autograd.grad(losses.sum(), neurons)[0]
            loss.index_add_(0, rows.owner, losses.detach())
            wrong.index_add_(0, rows.owner, misses)
        self.converged = (wrong == 0) & (loss < self.hparams.collection_loss_threshold)
        return loss

    def _arrange(self) -> None:
        """Assign rows to forward passes by length."""
        owners = [slot for slot, rows in enumerate(self._examples) for _ in rows]
        examples = [example for rows in self._examples for example in rows]
        streams = [stream for rows in self._streams for stream in rows]
        device = self.units.device
        self._contexts = torch.tensor([*map(len, self._examples)], device=device)
        self._passes = [
            Rows(
                Batch.of([examples[row] for row in chunk], device),
                pad_sequence([streams[row] for row in chunk], batch_first=True),
                torch.tensor([owners[row] for row in chunk], device=device),
            )
            for chunk in self.layers.passes(examples, self.rows_at_once)
        ]
