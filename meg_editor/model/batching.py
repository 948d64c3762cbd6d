"""Continuous batching of an edited model: transformers' three entry points, routed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.continuous_batching import ContinuousMixin

from meg_editor.routing.routing import Routing

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel
    from meg_editor.model.routed_manager import RoutedManager


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
        from meg_editor.model.routed_manager import RoutedManager

        check_routing(model)
        chosen = generation_config or model.base.generation_config
        return RoutedManager(model, chosen, continuous_batching_config, workload_hints)

    def destroy_cached_continuous_batching_manager(self) -> None:
        """The unedited model's, where transformers keeps one (`persistent_manager`)."""
        cast("MeGModel", self).base.destroy_cached_continuous_batching_manager()


def neuron_rows(model: MeGModel, routing: Routing) -> list[Tensor | None]:
    """The neuron (P,) of each of B routed prompts; None for one that asks for no edit."""
    neurons = model.neurons(routing)
    if neurons is None:
        return [None] * len(routing)
    return [
        neuron if yes else None
        for neuron, yes in zip(neurons, routing.is_edit.tolist(), strict=True)
    ]


def check_routing(model: MeGModel) -> None:
    """Raises ValueError where the setting `routing` is one that packed batches do not have."""
    if model.hparams.routing == "decoding":
        raise ValueError(
            "continuous batching, and with it `meg-editor serve`, routes prompts, not what is "
            "written: set routing=prompt, or call generate"
        )
