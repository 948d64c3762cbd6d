"""The context of an LLM: how much text it reads at once."""

from __future__ import annotations

from collections.abc import Sequence

from meg_editor.lm.ffn import text_config
from meg_editor.lm.protocols import CausalLM


def context_length(model: CausalLM) -> int | None:
    """Most tokens of a text; None where the model's config names no limit.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> context_length(model)
        256
    """
    return getattr(text_config(model), "max_position_embeddings", None) or None


def that_fit(model: CausalLM, lengths: Sequence[int]) -> list[int]:
    """Which of the texts of so many tokens the model can read; in any case the first one.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> that_fit(model, [12, 999, 256]), that_fit(model, [999, 998])
        ([0, 2], [0])
    """
    limit = context_length(model)
    fitting = [row for row, length in enumerate(lengths) if limit is None or length <= limit]
    return fitting or [0]
