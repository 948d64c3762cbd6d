"""Layer sweep: collection in each layer, to choose the edited one (A.4, figures 5 to 7)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meg_editor.collection.collect import Collection, collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.answers import answers_with, says
from meg_editor.lm.neuron import NeuronSpec, usable_layers
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import max_target_length
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import EditRequest


@dataclass(frozen=True)
class LayerResult:
    """Quality and cost of collected neurons in one layer.

    Attributes:
        layer: index of the decoder block, from 0.
        reliability: percent of edited prompts answered with the target.
        generality: percent of paraphrases answered with it under the neuron of their fact; None
            without paraphrases.
        steps: SGD steps per fact, mean; 0 where the loss was finite for none.
        milliseconds: collection time per fact.
    """

    layer: int
    reliability: float
    generality: float | None
    steps: float
    milliseconds: float


def layer_sweep(
    model: CausalLM,
    tokenizer: Tokenizer,
    requests: Sequence[EditRequest],
    hparams: MeGHyperParams,
    layers: Sequence[int] | None = None,
) -> list[LayerResult]:
    """Collect neurons for `requests` in each of `layers`, without retries.

    Args:
        requests: facts which will not be edited; with `rephrases` for Generality.
        layers: indices of decoder blocks; default: all.

    Returns:
        One LayerResult per layer.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> facts = [EditRequest("The capital of France is", "Lima")]
        >>> layer_sweep(model, tokenizer, facts, hparams, layers=[2])[0].reliability
        100.0
    """
    results = []
    for layer in usable_layers(model) if layers is None else layers:
        settings = dataclasses.replace(hparams, layers=[layer])
        spec = NeuronSpec.from_hparams(model, settings)
        start = time.perf_counter()
        try:
            collected = collect(model, tokenizer, spec, requests, settings, retries=0)
        except FloatingPointError:  # the learning rate is too high for this layer
            empty = Collection.empty(spec, len(requests))
            collected = dataclasses.replace(empty, success=torch.zeros_like(empty.success))
        taken = 1000 * (time.perf_counter() - start) / len(requests)
        results.append(
            LayerResult(
                layer,
                100 * float(collected.success.float().mean()),
                _generality(model, tokenizer, spec, requests, collected.neurons, settings),
                float(collected.steps.float().mean()),
                taken,
            )
        )
    return results


def _generality(
    model: CausalLM,
    tokenizer: Tokenizer,
    spec: NeuronSpec,
    requests: Sequence[EditRequest],
    neurons: Tensor,
    hparams: MeGHyperParams,
) -> float | None:
    paraphrases = [(index, p) for index, request in enumerate(requests) for p in request.rephrases]
    if not paraphrases:
        return None
    neurons = neurons[[index for index, _ in paraphrases]]
    prompts = [in_template(hparams.prompt_template, prompt) for _, prompt in paraphrases]
    longest = max_target_length(tokenizer, requests)
    answers = answers_with(model, tokenizer, spec, neurons, prompts, longest)
    right = sum(
        says(answer, requests[index].target_new)
        for answer, (index, _) in zip(answers, paraphrases, strict=True)
    )
    return 100 * right / len(paraphrases)
