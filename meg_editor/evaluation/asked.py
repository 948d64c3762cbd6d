"""Questions as a model gets them, whether it routes or not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from meg_editor.lm.protocols import CausalLM
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.prompts import PromptReader


def reader_of(model: CausalLM, reader: PromptReader) -> PromptReader:
    """That of a RoutedModel, which has its prompt template; else `reader`."""
    return model.reader if isinstance(model, RoutedModel) else reader


def decided(model: CausalLM, prompts: Sequence[str]) -> AbstractContextManager[None]:
    """Within the block the routing decisions for B prompts are in effect, of a model that routes.

    A prompt that occurs again is decided once.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> with decided(model, ["Who wrote Emma?"]):  # nothing is decided: it does not route
        ...     pass
    """
    if not isinstance(model, RoutedModel):
        return nullcontext()
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    decision = model.decide([*row_of])
    return model.applied(model.select_rows(decision, [row_of[prompt] for prompt in prompts]))
