"""Generators which learn by gradient descent: the training loop they share."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators.base import NeuronScaling, WeightGenerator
from meg_editor.runtime.precision import bfloat16
from meg_editor.runtime.processes import Processes
from meg_editor.runtime.progress import progress_bar

_LOG = logging.getLogger(__name__)
_POOR = 0.7  # from this error on there is more noise than signal, and answers suffer
_MOST = 5.0  # times which what is generated is stretched at most


class LearnedGenerator(WeightGenerator):
    """A generator with a network which is trained by gradient descent."""

    def __init__(self, hparams: MeGHyperParams, dimension: int, size: int) -> None:
        super().__init__()
        self.hparams, self.dimension, self.size = hparams, dimension, size
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.full((size,), hparams.generator_scale))
        self.stretch: Tensor
        self.register_buffer("stretch", torch.ones(()))

    @property
    def scaling(self) -> NeuronScaling:
        return NeuronScaling(self.mean, self.scale)

    @property
    def optional(self) -> bool:
        """Whether the network may be left out (`do_without`) where it would learn nothing."""
        return False

    def do_without(self) -> None:
        """Leave the network out."""

    def prepare(self, conditions: Tensor, targets: Tensor) -> None:
        """What is known in closed form of the pairs (N, E) -> (N, P), before the descent."""

    def draw(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What the loss of scaled neurons (B, P) takes from chance, row by row: (B, ...) each."""
        return ()

    @abstractmethod
    def loss(self, conditions: Tensor, targets: Tensor, *drawn: Tensor) -> Tensor:
        """Training loss of scaled neurons (B, P) under conditions (B, E), a scalar."""

    @abstractmethod
    def predict(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        """(B, E) -> scaled neurons (B, P)."""

    @torch.no_grad()
    def generate(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        return self.scaling.inverse(self.stretch * self.predict(conditions, steps))

    def fit(
        self,
        conditions: Tensor,
        neurons: Tensor,
        irrelevant: Tensor | None = None,
        seed: int = 0,
        processes: Processes | None = None,
    ) -> list[float]:
        h = self.hparams
        if h.generator_scaling == "whiten":
            # All neurons start at one point: what they have in common need not be learned.
            self.mean.copy_(neurons.mean(0))
            spread = neurons.std(0, correction=0)
            self.scale.copy_(spread.clamp_min(0.05 * float(spread.mean()) + 1e-12))
        targets = self.scaling.forward(neurons)
        zero = self.scaling.forward(torch.zeros_like(neurons[:1]))
        processes = processes or Processes()
        # What is drawn is drawn where it is used: nothing is copied to the device in a step.
        device = neurons.device
        chance: dict[str, Any] = {
            "generator": torch.Generator(device).manual_seed(seed),
            "device": device,
        }

        def batch() -> tuple[Tensor, Tensor]:
            count = min(h.generator_batch_size, len(neurons))
            rows = torch.randperm(len(neurons), **chance)[:count]
            z, w = conditions[rows], targets[rows]
            if irrelevant is not None and len(irrelevant):
                extra = max(1, round(count * h.generator_zero_augmentation))
                others = torch.randint(len(irrelevant), (extra,), **chance)
                z = torch.cat([z, irrelevant[others]])
                w = torch.cat([w, zero.expand(extra, -1)])
            if h.generator_condition_noise:
                noise = torch.randn(z.shape, **chance)
                z = z + h.generator_condition_noise / math.sqrt(self.dimension) * noise
                z = nn.functional.normalize(z, dim=-1)
            return z, w

        def loss() -> Tensor:
            """This process's share of the loss: all of them draw the same batch."""
            z, w = batch()
            drawn = self.draw(w, chance["generator"])
            own = slice(processes.rank, None, processes.count)
            share = len(z[own]) / len(z)
            own = own if share else slice(0, 1)  # more processes than rows
            return share * self.loss(z[own], w[own], *(values[own] for values in drawn))

        if h.generator_zero_augmentation == 0:
            irrelevant = None
        probe = slice(0, 64)  # enough to judge by; sampling is most of the cost of a look
        steps = max(
            h.generator_steps,
            h.generator_epochs * math.ceil(len(neurons) / h.generator_batch_size),
        )

        def error() -> float:
            return processes.once(lambda: self.error(conditions[probe], neurons[probe]))

        self.stretch.fill_(1.0)
        self.prepare(conditions, targets)
        losses: list[float] = []
        before = left = error()
        if not before < h.generator_tolerance and any(True for _ in self.parameters()):  # NaN too
            worth = before if self.optional else math.inf
            losses = self._descend(steps, loss, error, worth, seed, processes)
            left = error()
        if self.optional and (not losses or left >= before):
            self.do_without()
            left = before
        if h.generator_scaling == "whiten":
            self.stretch.copy_(self._shrinkage(conditions, targets).reciprocal())
        if processes.is_main and left > _POOR:
            _LOG.warning(
                "the generator recalls its neurons to %.2f standard deviations only (expected below"
                " %.2f): %d edits need more generator_features, a wider generator (generator_width)"
                " trained for more generator_epochs, or generator: bank",
                *(left, _POOR, len(neurons)),
            )
        return losses

    def _shrinkage(self, conditions: Tensor, targets: Tensor) -> Tensor:
        """Slope of what is generated over what it should be, a scalar.

        Least squares shrinks what it cannot tell towards the mean. A neuron which is too short
        does not fire; one of the right length in a somewhat wrong direction does.
        """
        rows = sample(len(targets))
        made, wanted = self.predict(conditions[rows]), targets[rows]
        slope = ((made * wanted).sum() + 1e-12) / (wanted.square().sum() + 1e-12)
        return slope.clamp(1 / _MOST, 1.0)

    @torch.no_grad()
    def error(self, conditions: Tensor, neurons: Tensor) -> float:
        """Mean plus standard deviation of the generated neurons' relative error (A.11.1).

        Before they are stretched.
        """
        made = self.scaling.inverse(self.predict(conditions))
        distance = self.scaling.forward(made) - self.scaling.forward(neurons)
        relative = distance.norm(dim=1) / math.sqrt(self.size)
        return float(relative.mean() + relative.std(correction=0))

    def _descend(
        self,
        steps: int,
        next_loss: Callable[[], Tensor],
        error: Callable[[], float],
        worth: float,
        seed: int,
        processes: Processes,
    ) -> list[float]:
        """AdamW with a short warm-up and a cosine decay; the average of the weights is kept.

        Ends early when the average generates its neurons within `generator_tolerance`, or after
        `generator_steps` when their error is not below `worth`.
        """
        h = self.hparams
        network = list(self.parameters())
        optimizer = torch.optim.AdamW(network, lr=h.generator_lr, weight_decay=0.0, fused=True)
        average = [parameter.detach().clone() for parameter in network]
        losses: list[Tensor] = []
        checks = {1, 25, 50, 100, *range(200, steps, 200)}
        self.train().requires_grad_(True)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)  # dropout
            for step in progress_bar(range(steps), "generator"):
                progress = step / steps
                rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress))
                optimizer.param_groups[0]["lr"] = h.generator_lr * rate
                with bfloat16(network[0].device):
                    loss = next_loss()
                optimizer.zero_grad()
                loss.backward()
                gradients = [parameter.grad for parameter in network if parameter.grad is not None]
                losses.append(loss.detach())
                processes.sum_([*gradients, losses[-1]])
                nn.utils.clip_grad_norm_(network, 1.0)
                optimizer.step()
                # A young average forgets its random start quickly.
                decay = min(h.generator_ema, (1 + step) / (10 + step))
                torch._foreach_lerp_(average, [p.detach() for p in network], 1 - decay)
                # Few edits are learned in a moment: look soon, then ever more rarely.
                if step + 1 in checks:
                    if not bool(losses[-1].isfinite()):
                        break  # told below
                    with _swapped(network, average):
                        self.eval()
                        left = error()
                        self.train()
                    hopeless = step + 1 >= h.generator_steps and left >= worth
                    if left < h.generator_tolerance or hopeless:
                        break
        told = _check_finite(losses, h.generator_lr)
        torch._foreach_copy_([p.data for p in network], average)
        self.eval().requires_grad_(False)
        return told


def sample(count: int) -> slice:
    """About a thousand of `count` rows, evenly spread: enough for what is averaged over all."""
    return slice(None, None, math.ceil(count / 1024))


def _check_finite(losses: Sequence[Tensor], rate: float) -> list[float]:
    """The losses as numbers. Only at the end: it waits for the device."""
    told: list[float] = torch.stack(list(losses)).tolist()
    for step, loss in enumerate(told):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"generator: loss is {loss} at step {step}; lower generator_lr ({rate})"
            )
    return told


@contextmanager
def _swapped(network: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, the parameters have other values."""
    live = [parameter.data for parameter in network]
    for parameter, value in zip(network, values, strict=True):
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in zip(network, live, strict=True):
            parameter.data = value
