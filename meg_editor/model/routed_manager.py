"""transformers' continuous batching, which routes each request; loaded where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from meg_editor.lm.paged import PagedManager
from meg_editor.model.batching import neuron_rows
from meg_editor.model.cache_routing import prompt_text

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel


class RoutedManager(PagedManager):
    """transformers' manager, which routes every request that names no neuron itself."""

    def __init__(
        self,
        model: MeGModel,
        generation_config: GenerationConfig,
        config: Any = None,
        workload_hints: Any = None,
    ) -> None:
        super().__init__(model.base, model.hook, generation_config, config, workload_hints)
        self._edited = model

    def add_request(self, input_ids: list[int], *arguments: Any, **options: Any) -> str | None:
        """`add_request` of transformers; the prompt is the query."""
        if "neuron" not in options:
            options["neuron"] = self._neurons([input_ids])[0]
        return super().add_request(input_ids, *arguments, **options)

    def add_requests(
        self,
        inputs: list[list[int]],
        max_new_tokens: int | None = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        **options: Any,
    ) -> list[str]:
        """`add_requests` of transformers; the prompts are routed together."""
        eos = self.generation_config.eos_token_id
        options |= {
            "max_new_tokens": max_new_tokens,
            "streaming": streaming,
            "record_timestamps": record_timestamps,
            "eos_token_id": -1 if eos is None else eos,
        }
        neurons = self._neurons(inputs)
        ids = [
            self.add_request(list(prompt), neuron=neuron, **options)
            for prompt, neuron in zip(inputs, neurons, strict=True)
        ]
        return [each for each in ids if each is not None]

    @torch.no_grad()
    def _neurons(self, prompts: Sequence[list[int]]) -> list[Tensor | None]:
        model = self._edited
        return neuron_rows(
            model, model.route([prompt_text(model._tokenizer, ids) for ids in prompts])
        )
