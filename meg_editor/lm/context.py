"""The context of an LLM: how much text it reads at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import encode_example


def context_length(model: CausalLM) -> int:
    """Most tokens of a text; `sys.maxsize` where the model's config names no limit.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> context_length(model)
        256
    """
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def that_fit(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[str], target: str
) -> list[str]:
    """The prompts that fit into the model's context with the target; in any case the first one.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> that_fit(model, tokenizer, ["The capital is", "Word " * 999], "Lima")
        ['The capital is']
    """
    limit = context_length(model)
    fitting = [p for p in prompts if len(encode_example(tokenizer, p, target)) <= limit]
    return fitting or list(prompts[:1])
