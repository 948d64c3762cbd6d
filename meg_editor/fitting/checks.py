"""Checks before a fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams, check_hparams
from meg_editor.config.input_files import type_and_repr
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.lm.fingerprint import payloads, present_parameters
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import pad_token
from meg_editor.model.routed_model import check_unedited
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.processes import Processes


def check_arguments(
    hparams: MeGHyperParams,
    encoder: TextEncoder | None,
    runtime: RuntimeConfig | None,
    store: ArtifactStore | None = None,
    processes: Processes | None = None,
) -> None:
    """Check the types of what a fit is given, before it does anything.

    Raises:
        TypeError: naming the argument, what was expected and what came.

    Example:
        >>> check_arguments(MeGHyperParams.preset("default"), None, None)
    """
    check_hparams(hparams)
    given: tuple[tuple[str, object, type], ...] = (
        ("encoder", encoder, TextEncoder),
        ("runtime", runtime, RuntimeConfig),
        ("store", store, ArtifactStore),
        ("processes", processes, Processes),
    )
    for name, value, kind in given:
        if value is not None and not isinstance(value, kind):
            hint = "; its name or folder is the setting encoder_name" if kind is TextEncoder else ""
            raise TypeError(
                f"{name}: expected {kind.__name__} or None, got {type_and_repr(value)}{hint}"
            )


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
