"""Continuous batching of an edited model: transformers' three entry points, routed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.continuous_batching import ContinuousMixin

from meg_editor.lm.paged import PagedManager
from meg_editor.model.cache_routing import prompt_texts

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel


class ContinuousBatching(ContinuousMixin):
    """`generate_batch`, `init_continuous_batching` and `continuous_batching_context_manager`.

    They take what those of transformers take. Each prompt is routed once, and answered with its own
    neuron, whatever it is answered with.

    Example:
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, _ = fit(model, tokenizer, facts, hparams)
        >>> prompts = ["The capital of France is", "The capital of Spain is"]
        >>> answers = edited.generate_batch(tokenizer(prompts)["input_ids"], max_new_tokens=1)
        >>> [tokenizer.decode(answer.generated_tokens).strip() for answer in answers.values()]
        ['Lima', 'Madrid']
    """

    @torch.no_grad()
    def init_continuous_batching(
        self,
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: Any = None,
        workload_hints: Any = None,
    ) -> RoutedManager:
        """A manager that takes requests as they come.

        Raises:
            ValueError: the setting `routing` is "decoding", which packed batches do not have.
        """
        model = cast("MeGModel", self)
        if model.hparams.routing == "decoding":
            raise ValueError(
                "continuous batching routes prompts, not what is written: set routing=prompt, or "
                "call generate"
            )
        chosen = generation_config or model.base.generation_config
        return RoutedManager(model, chosen, continuous_batching_config, workload_hints)

    def destroy_cached_continuous_batching_manager(self) -> None:
        """The unedited model's, where transformers keeps one (`persistent_manager`)."""
        cast("MeGModel", self).base.destroy_cached_continuous_batching_manager()


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

    def _neurons(self, prompts: Sequence[list[int]]) -> list[Tensor | None]:
        model = self._edited
        texts = [prompt_texts(model._tokenizer, torch.tensor([ids]), None)[0] for ids in prompts]
        return neuron_rows(model, texts)


@torch.no_grad()
def neuron_rows(model: MeGModel, texts: Sequence[str]) -> list[Tensor | None]:
    """The neuron (P,) of each of B prompts; None for one that asks for no edit."""
    routing = model.route(texts)
    neurons = model.neurons(routing)
    if neurons is None:
        return [None] * len(texts)
    return [
        neuron if yes else None
        for neuron, yes in zip(neurons, routing.is_edit.tolist(), strict=True)
    ]
