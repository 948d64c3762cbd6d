"""Checks before a fit."""

from __future__ import annotations

import torch
from torch import Tensor

from meg_editor.lm.fingerprint import payloads, present_parameters
from meg_editor.lm.protocols import CausalLM
from meg_editor.model.routed_model import RoutedModel


def check_model(model: CausalLM) -> None:
    """Check that a model can be edited.

    Raises:
        ValueError: it is an edited model, or a weight is not finite.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> check_model(model)
    """
    if isinstance(model, RoutedModel):
        kind = type(model).__name__
        raise ValueError(f"expected an unedited model, got a {kind}: pass its .base")
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in present_parameters(model, names):
        if not all(_is_finite(part) for _, part in payloads(name, parameter)):
            raise ValueError(f"the model's weight {name} holds NaN or infinity: load it again")


def _is_finite(weights: Tensor) -> bool:
    """Whether all weights are finite; a sum, which keeps NaN and infinity, takes far less time."""
    summed = weights.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if summed and bool(weights.sum(dtype=torch.float32).isfinite()):
        return True
    return bool(weights.isfinite().all())
