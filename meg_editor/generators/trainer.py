"""Training loop of the generators with a network (DiT, MLP)."""

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
from meg_editor.generators.base import FittableGenerator, NeuronScaling
from meg_editor.runtime.precision import bfloat16
from meg_editor.runtime.processes import Processes
from meg_editor.runtime.progress import progress_bar
from meg_editor.runtime.randomness import seeded
from meg_editor.runtime.torch_defaults import torch_defaults

_LOG = logging.getLogger(__name__)
_BATCH = 256  # facts in a training step
_TOLERANCE = 0.1  # early stopping: error in standard deviations
_POOR = 0.7  # error from which on a warning is logged
_MAX_STRETCH = 5.0


class LearnedGenerator(FittableGenerator):
    """Base class of generators with a network, trained by AdamW with EMA and early stopping.

    Args:
        hparams: the `generator_*` settings.
        dimension: E, of a query embedding.
        size: P, of a neuron.

    Attributes:
        mean, scale: (P,) that standardise neurons for the network.
        stretch: scalar from 1 to 5 by which `generate` multiplies what the network predicts, since
            one that has not learned all predicts too short a distance from the mean.
    """

    def __init__(self, hparams: MeGHyperParams, dimension: int, size: int) -> None:
        super().__init__()
        self.hparams, self.dimension, self.size = hparams, dimension, size
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.full((size,), hparams.generator_scale or 1.0))
        self.stretch: Tensor
        self.register_buffer("stretch", torch.ones(()))

    @property
    def scaling(self) -> NeuronScaling:
        return NeuronScaling(self.mean, self.scale)

    def draw(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random inputs of the loss for scaled neurons (B, P), such as noise: (B, ...) each."""
        return ()

    @abstractmethod
    def loss(self, conditions: Tensor, targets: Tensor, *drawn: Tensor) -> Tensor:
        """Training loss of scaled neurons (B, P) under conditions (B, E), a scalar; see `draw`."""

    @abstractmethod
    def predict(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        """Scaled neurons (B, P) for conditions (B, E), before the stretch."""

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
        if h.generator_zero_augmentation == 0 or irrelevant is None or not len(irrelevant):
            irrelevant, zeros = None, neurons[:0]
        else:
            zeros = neurons.new_zeros(self._extra(len(neurons)), self.size)
        if h.generator_scale is None:
            # All neurons start at one point: their mean need not be learned.
            learned = torch.cat([neurons, zeros])
            self.mean.copy_(learned.mean(0))
            spread = learned.std(0, correction=0)
            self.scale.copy_(spread.clamp_min(0.05 * float(spread.mean()) + 1e-12))
        targets = self.scaling.forward(neurons)
        zero = self.scaling.forward(torch.zeros_like(neurons[:1]))
        processes = processes or Processes()
        # Drawn on the device: nothing is copied to it in a step.
        device = neurons.device
        options: dict[str, Any] = {
            "generator": torch.Generator(device).manual_seed(seed),
            "device": device,
        }

        def batch() -> tuple[Tensor, Tensor]:
            count = min(_BATCH, len(neurons))
            rows = torch.randperm(len(neurons), **options)[:count]
            z, w = conditions[rows], targets[rows]
            if irrelevant is not None:
                extra = self._extra(count)
                others = torch.randint(len(irrelevant), (extra,), **options)
                z = torch.cat([z, irrelevant[others]])
                w = torch.cat([w, zero.expand(extra, -1)])
            return z, w

        def loss() -> Tensor:
            """Loss of the rows of this rank; all ranks draw the same batch."""
            z, w = batch()
            drawn = self.draw(w, options["generator"])
            rows = slice(processes.rank, None, processes.count)
            share = len(z[rows]) / len(z)
            rows = rows if share else slice(0, 1)  # more processes than rows
            return share * self.loss(z[rows], w[rows], *(values[rows] for values in drawn))

        probe = slice(0, 64)  # enough for early stopping; sampling is its main cost
        steps = max(
            h.generator_steps,
            h.generator_epochs * math.ceil(len(neurons) / _BATCH),
        )

        def error() -> float:
            return processes.once(lambda: self.error(conditions[probe], neurons[probe]))

        self.stretch.fill_(1.0)
        losses: list[float] = []
        if not (left := error()) < _TOLERANCE:  # NaN too
            losses = self._train(steps, loss, error, seed, processes)
            left = error()
        self.eval().requires_grad_(False)
        if h.generator_scale is None and irrelevant is None:  # zero would not stay zero
            self.stretch.copy_(self._shrinkage(conditions, targets).reciprocal())
        if processes.is_main and left > _POOR:
            _LOG.warning(
                "generator: its neurons are %.2f standard deviations from the collected ones "
                "(below %.2f is close). That need not cost answers: evaluate. If it does, use a "
                "wider generator (generator_width), more generator_epochs, or generator: auto",
                *(left, _POOR),
            )
        return losses

    def _extra(self, count: int) -> int:
        """Zero neurons of other queries in a batch of so many facts (A.3)."""
        return max(1, round(count * self.hparams.generator_zero_augmentation))

    @torch.no_grad()
    def _shrinkage(self, conditions: Tensor, targets: Tensor) -> Tensor:
        """Regression slope of generated over target neurons, a scalar.

        Least squares shrinks predictions towards the mean. A neuron which is too short does not
        fire; one of the right length in a somewhat wrong direction does.
        """
        rows = every_nth(len(targets))
        generated, expected = self.predict(conditions[rows]), targets[rows]
        slope = ((generated * expected).sum() + 1e-12) / (expected.square().sum() + 1e-12)
        return slope.clamp(1 / _MAX_STRETCH, 1.0)

    @torch.no_grad()
    def error(self, conditions: Tensor, neurons: Tensor) -> float:
        """Mean plus standard deviation of the relative error of generated neurons (A.11.1).

        In standard deviations of the neurons, before the stretch.

        Args:
            conditions: (B, E).
            neurons: (B, P), the targets.
        """
        generated = self.scaling.inverse(self.predict(conditions))
        distance = self.scaling.forward(generated) - self.scaling.forward(neurons)
        relative = distance.norm(dim=1) / math.sqrt(self.size)
        return float(relative.mean() + relative.std(correction=0))

    def _train(
        self,
        steps: int,
        next_loss: Callable[[], Tensor],
        error: Callable[[], float],
        seed: int,
        processes: Processes,
    ) -> list[float]:
        """AdamW with warm-up, cosine decay and an exponential moving average of the weights.

        Stops early when the error of the averaged network is below `_TOLERANCE`.
        """
        h = self.hparams
        network = list(self.parameters())
        optimizer = torch.optim.AdamW(network, lr=h.generator_lr, weight_decay=0.0, fused=True)
        average = [parameter.detach().clone() for parameter in network]
        losses: list[Tensor] = []
        checks = {1, 25, 50, 100, *range(200, steps, 200)}
        self.train().requires_grad_(True)
        precision = bfloat16(network[0].device)
        with seeded(seed, network[0].device), torch_defaults():  # dropout
            for step in progress_bar(range(steps), "generator"):
                progress = step / steps
                rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress))
                optimizer.param_groups[0]["lr"] = h.generator_lr * rate
                with precision:
                    loss = next_loss()
                optimizer.zero_grad()
                loss.backward()
                gradients = [parameter.grad for parameter in network if parameter.grad is not None]
                losses.append(loss.detach())
                processes.sum_([*gradients, losses[-1]])
                nn.utils.clip_grad_norm_(network, 1.0)
                optimizer.step()
                # The average forgets the random initialisation quickly.
                decay = min(h.generator_ema, (1 + step) / (10 + step))
                torch._foreach_lerp_(average, [p.detach() for p in network], 1 - decay)
                # Few edits are learned quickly: early checks first, then rarer ones.
                if step + 1 in checks:
                    if not bool(losses[-1].isfinite()):
                        break  # raised below
                    with _swapped(network, average):
                        self.eval()
                        left = error()
                        self.train()
                    if left < _TOLERANCE:
                        break
        values = _check_finite(losses, h.generator_lr)
        torch._foreach_copy_([p.data for p in network], average)
        self.eval().requires_grad_(False)
        return values


def every_nth(count: int) -> slice:
    """Slice of about a thousand of `count` rows, evenly spaced, to estimate an average.

    Example:
        >>> every_nth(4096)
        slice(None, None, 4)
    """
    return slice(None, None, math.ceil(count / 1024))


def _check_finite(losses: Sequence[Tensor], rate: float) -> list[float]:
    """The losses as numbers. Called at the end only, since it waits for the device."""
    values: list[float] = torch.stack(list(losses)).tolist()
    for step, loss in enumerate(values):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"generator: loss is {loss} at step {step}; lower generator_lr ({rate})"
            )
    return values


@contextmanager
def _swapped(network: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Context in which the parameters have other values."""
    live = [parameter.data for parameter in network]
    for parameter, value in zip(network, values, strict=True):
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in zip(network, live, strict=True):
            parameter.data = value
