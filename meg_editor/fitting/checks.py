"""Checks before a fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meg_editor.lm.fingerprint import payloads, present_parameters
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import pad_token
from meg_editor.model.routed_model import check_unedited


def check_model(model: CausalLM, tokenizer: Tokenizer) -> None:
    """Check that a model can be edited.

    Raises:
        TypeError: it is no causal LM of transformers, or the tokenizer is none.
        ValueError: it is an edited model, a weight is not finite, or it has no embedding for the
            token of the tokenizer that pads.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> check_model(model, tokenizer)
    """
    check_unedited(model)
    if not callable(tokenizer):
        raise TypeError(f"tokenizer: expected one of transformers, got {type(tokenizer).__name__}")
    embeddings: Any = model.get_input_embeddings()
    rows, pad = embeddings.weight.shape[0], pad_token(tokenizer)
    if pad >= rows:
        raise ValueError(
            f"the tokenizer's padding token has the id {pad}, the model has embeddings for {rows} "
            "tokens: tokenizer.pad_token = tokenizer.eos_token, or "
            "model.resize_token_embeddings(len(tokenizer))"
        )
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
