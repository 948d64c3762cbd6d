"""Sampling of the next token, as one request asks for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

_LEAST_TEMPERATURE = 1e-4  # lower ones overflow, and are greedy anyway


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token.

    Attributes:
        logprob: the log-probability that the model gave it, before temperature and top_p; None
            where it was not asked for.
        top: the most likely tokens (id, log-probability), the most likely first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen.

    Args:
        temperature: 0 for the most likely token.
        top_p: share of the probability that is sampled from, in (0, 1].
        seed: of the answer, whatever it is answered with; None: PyTorch's random state.
        logprobs: how many of the most likely tokens are named beside each chosen one; None:
            no log-probabilities.

    Raises:
        ValueError: a value out of its range.

    Example:
        >>> import torch
        >>> choose = Sampling(temperature=0.5, seed=0).chooser()
        >>> choose(torch.tensor([0.0, 99.0])).token
        1
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature: expected a number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")

    def chooser(self) -> Chooser | None:
        """The chooser of one answer; None where the most likely token is all that is asked for."""
        return None if self.temperature == 0 and self.logprobs is None else Chooser(self)


class Chooser:
    """Chooses the tokens of one answer, one after the other."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator: torch.Generator | None = None

    def __call__(self, logits: Tensor) -> TokenLogprob:
        """The next token, from logits (V,)."""
        sampling, logits = self._sampling, logits.float()
        if sampling.temperature < _LEAST_TEMPERATURE:
            token = int(logits.argmax())
        else:
            token = self._drawn(logits / sampling.temperature)
        if sampling.logprobs is None:
            return TokenLogprob(token)
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(sampling.logprobs, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return TokenLogprob(token, float(logprobs[token]), top)

    def _drawn(self, logits: Tensor) -> int:
        if self._sampling.top_p < 1:
            warper = TopPLogitsWarper(self._sampling.top_p)
            logits = warper(torch.empty(1, 0, dtype=torch.long), logits.unsqueeze(0))[0]
        if self._generator is None and self._sampling.seed is not None:
            self._generator = torch.Generator(logits.device).manual_seed(self._sampling.seed)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))
