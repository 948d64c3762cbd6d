"""Checks of facts before their neurons are collected."""

from __future__ import annotations

from collections.abc import Sequence

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.answers import batched_answers, says
from meg_editor.lm.context import context_length
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import encode_example, max_target_length
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import EditRequest, RequestError


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
    context = context_length(model) or hparams.max_length
    limit = min(hparams.max_length, context)
    for row, edit in enumerate(edits):
        prompt = in_template(hparams.prompt_template, edit.prompt)
        length = len(encode_example(tokenizer, prompt, edit.target_new))
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
    prompts = [in_template(hparams.prompt_template, edit.prompt) for edit in edits]
    answers = batched_answers(model, tokenizer, prompts, max_target_length(tokenizer, edits))
    return [
        edit.prompt
        for edit, answer in zip(edits, answers, strict=True)
        if says(answer, edit.target_new)
    ]
