"""Seeded random numbers with the global random state restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Context with seeded random numbers of PyTorch on the CPU and on `device`; restores the state.

    `torch.manual_seed` would reseed every GPU.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(())
        >>> with seeded(3):
        ...     bool(torch.rand(()) == first)
        True
    """
    device = torch.device(device)
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
