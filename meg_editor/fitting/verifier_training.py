"""Training of a verifier on the phrasebook: low-rank changes of a text encoder."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from meg_editor.data.phrasebook.phrasebook import Pair, Phrasebook
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.verifier import DOWN, UP, logits_of_pairs
from meg_editor.runtime.precision import bfloat16
from meg_editor.runtime.randomness import seeded

_WARM_UP = 0.05  # of the steps; the rate falls over the last 60 %
_POOL = 4  # batches drawn at once, to put pairs of similar length together


class _LowRank(nn.Module):
    """Adds B·A to a weight (N, M): A is (R, M), B (N, R), zero at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def train_verifier(
    encoder: TextEncoder,
    book: Phrasebook,
    *,
    steps: int,
    rank: int = 32,
    batch: int = 32,
    lr: float = 2e-3,
    seed: int = 0,
    report: Callable[[int, float], Any] = lambda step, loss: None,
) -> dict[str, Tensor]:
    """Adapter of a `Verifier` for `encoder`, float16 on the CPU.

    Binary cross-entropy on pairs from the phrasebook, AdamW.

    Args:
        rank: R of the change of each linear layer.
        batch: pairs in a step.
        report: called with the number of each step and its loss.

    Raises:
        FloatingPointError: the loss is not finite.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> adapter = train_verifier(encoder, Phrasebook.load(), steps=1, rank=1, batch=4)
        >>> adapter["head.weight"].shape == (1, encoder.dimension)
        True
    """
    rng = random.Random(seed)
    with seeded(seed), torch.enable_grad():
        model: Any = copy.deepcopy(encoder.model).requires_grad_(False)
        changed = _with_low_rank(model, rank)
        head = nn.Linear(encoder.dimension, 1)
        parameters = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr)
        model.train()
        for step, pairs in zip(range(steps), _batches(book, batch, rng), strict=False):
            progress = (step + 1) / steps
            optimizer.param_groups[0]["lr"] = lr * min(
                1.0, progress / _WARM_UP, (1 - progress) / 0.6 + 1e-3
            )
            with bfloat16(next(model.parameters()).device):
                logits = logits_of_pairs(
                    model,
                    encoder.tokenizer,
                    encoder.pooling,
                    head,
                    [pair.prompt for pair in pairs],
                    [pair.fact for pair in pairs],
                )
            labels = torch.tensor([float(pair.asks) for pair in pairs], device=logits.device)
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
    adapter = {f"head.{name}": value for name, value in head.named_parameters()}
    for name, change in changed.items():
        adapter[name + DOWN], adapter[name + UP] = change.down, change.up
    return {name: value.detach().half().cpu().contiguous() for name, value in adapter.items()}


def _with_low_rank(model: nn.Module, rank: int) -> dict[str, _LowRank]:
    """Give every linear layer of `model` a low-rank change; layer name -> change."""
    changed = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            changed[name] = _LowRank(module.weight, rank)
            parametrize.register_parametrization(module, "weight", changed[name])
    return changed


def _batches(book: Phrasebook, size: int, rng: random.Random) -> Iterator[list[Pair]]:
    """Batches of pairs of similar length, without end."""
    while True:
        pairs = [book.draw(rng) for _ in range(_POOL * size)]
        pairs.sort(key=lambda pair: len(pair.prompt) + len(pair.fact))
        groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        rng.shuffle(groups)
        yield from groups
