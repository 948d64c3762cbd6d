"""Training of a verifier on pairs of prompt and fact: what changes in an encoder, and a head."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meg_editor.data.phrasebook.phrasebook import Pair
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.support_vectors import SUPPORT_VECTORS
from meg_editor.routing.verifier import DOWN, TYPES, UP, PairReader, Verifier, limits_of
from meg_editor.runtime.precision import bfloat16
from meg_editor.runtime.progress import progress_bar
from meg_editor.runtime.randomness import seeded
from meg_editor.runtime.torch_defaults import torch_defaults

_WARM_UP = 0.05  # of the steps; the rate falls over the last 60 %
LIMITS = {  # of a new verifier
    "threshold": 0.5,
    "similarity": 0.4,
    "dialogue": 0.9,
    "system": 0.1,
}
_POOL = 4  # batches drawn at once, to put pairs of similar length together


class Pairs(Protocol):
    """Draws pairs of a prompt and a fact."""

    def draw(self, rng: random.Random) -> Pair:
        """By and large as many which ask for their fact as others."""


def train_verifier(
    encoder: TextEncoder,
    pairs: Pairs,
    *,
    steps: int,
    rank: int = 64,
    batch: int = 32,
    lr: float = 1e-4,
    seed: int = 0,
    start: Mapping[str, Tensor] | None = None,
    limits: Mapping[str, float] | None = None,
    report: Callable[[int, float], Any] = lambda step, loss: None,
) -> dict[str, Tensor]:
    """Adapter of a `Verifier` for `encoder`, float16 on the CPU.

    Binary cross-entropy on drawn pairs, AdamW on the weights of the linear layers.
    Low-rank changes learn several times slower; so the changes are reduced afterwards, to the rank
    `rank` by their singular values. The support vectors stay those of `start`.

    Args:
        pairs: a `Phrasebook`, or whatever else draws them.
        batch: pairs in a step.
        start: an adapter to go on from.
        limits: of the `Verifier`; default: those of `start`, or `LIMITS`.
        report: called with the number of each step and its loss.

    Raises:
        FloatingPointError: the loss is not finite.

    Example:
        >>> from meg_editor.data.phrasebook.phrasebook import Phrasebook
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> adapter = train_verifier(encoder, Phrasebook.load(), steps=1, rank=1, batch=4)
        >>> adapter["head.weight"].shape == (1, encoder.dimension)
        True
    """
    rng = random.Random(seed)
    device = next(encoder.model.parameters()).device
    with seeded(seed, device), torch_defaults():
        reader = PairReader.of(encoder)
        if start is None:
            model: Any = copy.deepcopy(encoder.model).requires_grad_(False)
            head = nn.Linear(encoder.dimension, 1, device=device)
        else:
            begun = Verifier(encoder, start)
            model, head = begun.model, begun.head.requires_grad_(True)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        for layer in layers.values():
            layer.weight.requires_grad_(True)
        types = dict(model.named_parameters()).get(TYPES)
        parameters = [*(layer.weight for layer in layers.values()), *head.parameters()]
        if types is not None:
            parameters.append(types.requires_grad_(True))
        optimizer = torch.optim.AdamW(parameters, lr)
        model.train()
        precision = bfloat16(device)
        batches = _batches(pairs, batch, rng)
        for step in progress_bar(range(steps), "verifier"):
            drawn = next(batches)
            progress = (step + 1) / steps
            optimizer.param_groups[0]["lr"] = lr * min(
                1.0, progress / _WARM_UP, (1 - progress) / 0.6 + 1e-3
            )
            with precision:
                prompts = [pair.prompt for pair in drawn]
                logits = head(reader.pooled(model, prompts, [pair.fact for pair in drawn]))[:, 0]
            labels = torch.tensor([float(pair.asks) for pair in drawn], device=device)
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"verifier: loss is {loss.item()} at step {step}; lower lr ({lr})"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            report(step, loss.item())
    adapter: dict[str, Tensor] = {f"head.{name}": value for name, value in head.named_parameters()}
    limits = limits or (limits_of(start) if start else LIMITS)
    adapter |= {name: torch.tensor(limit) for name, limit in limits.items()}
    adapter |= {n: value for n, value in (start or {}).items() if n.startswith(SUPPORT_VECTORS)}
    if types is not None:
        adapter[TYPES] = types
    for name, layer in layers.items():
        before = encoder.model.get_submodule(name).weight
        adapter[name + UP], adapter[name + DOWN] = _low_rank(layer.weight - before, rank)
    return {name: value.detach().half().cpu().contiguous() for name, value in adapter.items()}


@torch.no_grad()
def _low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(N, R) and (R, M), whose product is nearest to `change` (N, M)."""
    left, values, right = torch.linalg.svd(change.float(), full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root.unsqueeze(1) * right[:rank]


def _batches(pairs: Pairs, size: int, rng: random.Random) -> Iterator[list[Pair]]:
    """Batches of pairs of similar length, without end."""
    while True:
        drawn = [pairs.draw(rng) for _ in range(_POOL * size)]
        drawn.sort(key=lambda pair: len(pair.prompt) + len(pair.fact))
        groups = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        rng.shuffle(groups)
        yield from groups
