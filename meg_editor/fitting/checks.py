"""Checks before a fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.fingerprint import payloads, present_parameters
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import batched_answers, encode_example, max_target_length
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest, RequestError


def check_model(model: CausalLM) -> None:
    """Check that a model can be edited.

    Raises:
        ValueError: it is an edited model, or a weight is not finite.

    Example:
        >>> from meg_editor import load_model
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


def check_lengths(
    model: CausalLM, tokenizer: Tokenizer, edits: Sequence[EditRequest], hparams: MeGHyperParams
) -> None:
    """Check that every prompt with its target fits into the model's context.

    Raises:
        RequestError: one does not.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> check_lengths(model, tokenizer, [EditRequest("Word " * 9999, "x")], hparams)
        Traceback (most recent call last):
        ...
        meg_editor.requests.request.RequestError: request 0 ('Word Word ...
    """
    context = getattr(model.config, "max_position_embeddings", None) or hparams.max_length
    limit = min(hparams.max_length, context)
    reader = PromptReader(tokenizer, hparams.prompt_template)
    for row, edit in enumerate(edits):
        length = len(encode_example(tokenizer, reader.wrap(edit.prompt), edit.target_new))
        if length > limit:
            raise RequestError(
                f"request {row} ({edit.prompt[:40]!r}...): prompt and target take {length} tokens, "
                f"more than {limit} (the lesser of max_length {hparams.max_length} and the model's "
                f"context {context}); shorten it or raise max_length"
            )


def already_correct(
    model: CausalLM, tokenizer: Tokenizer, edits: Sequence[EditRequest], hparams: MeGHyperParams
) -> list[str]:
    """Prompts whose target is the model's answer before the edit: allowed, but reported.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> facts = [EditRequest("The capital of France is", "Paris")]
        >>> already_correct(*load_model(hparams), facts, hparams)
        ['The capital of France is']
    """
    reader = PromptReader(tokenizer, hparams.prompt_template)
    prompts = [reader.wrap(edit.prompt) for edit in edits]
    answers = batched_answers(model, tokenizer, prompts, max_target_length(tokenizer, edits))
    return [
        edit.prompt
        for edit, answer in zip(edits, answers, strict=True)
        if answer == edit.target_new
    ]
