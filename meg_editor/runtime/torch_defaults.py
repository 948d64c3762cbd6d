"""Torch as it is where nobody has changed its defaults, within a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Gradients are computed, in the precision of the tensors, and tensors without a device are
    made on the CPU.

    So too within `torch.no_grad`, `torch.inference_mode` and `torch.autocast`, and after
    `torch.set_default_device`.
    The default dtype is one for all threads, so it is not touched.

    Raises:
        ValueError: the default dtype is not float32.

    Example:
        >>> with torch.inference_mode(), torch_defaults():
        ...     torch.ones(1, requires_grad=True).sum().backward()
    """
    if torch.get_default_dtype() != torch.float32:
        raise ValueError(
            f"expected torch's default dtype to be float32, got {torch.get_default_dtype()}: load "
            "the model with dtype=…, then torch.set_default_dtype(torch.float32)"
        )
    elsewhere = torch.get_default_device().type != "cpu"
    device = torch.device("cpu") if elsewhere else nullcontext()
    with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad(), device:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
