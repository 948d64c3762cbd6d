"""Optimisation inside a call, whatever mode the caller is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients are computed, within `torch.no_grad` and `torch.inference_mode` too.

    Example:
        >>> with torch.inference_mode(), gradients():
        ...     torch.ones(1, requires_grad=True).sum().backward()
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield
