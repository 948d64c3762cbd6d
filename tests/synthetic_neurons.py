"""Neurons which need no collection: random ones, the same for a fact in every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meg_editor.collection.collect import Collection
from meg_editor.edits.edit import edit_id
from meg_editor.edits.edition import Rows
from meg_editor.edits.live import edits_of
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest


def neuron_of(request: EditRequest, size: int) -> Tensor:
    """Neuron (P,) of a fact, large enough to change answers."""
    generator = torch.Generator().manual_seed(int(edit_id(request), 16) % 2**31)
    return torch.randn(size, generator=generator)


class Collector:
    """In place of `collect`; notes the prompts it was asked for."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(
        self, model: Any, tokenizer: Any, spec: Any, requests: Sequence[EditRequest], *_: Any
    ) -> Collection:
        self.prompts += [request.prompt for request in requests]
        found = Collection.empty(spec, len(requests))
        for row, request in enumerate(requests):
            found.neurons[row] = neuron_of(request, spec.size)
        return found


def put(model: MeGModel, requests: Sequence[EditRequest]) -> None:
    """Add facts to a model with their synthetic neurons, whatever they are in conflict with."""
    neurons = torch.stack([neuron_of(request, model.spec.size) for request in requests])
    prompts = [request.prompt for request in requests]
    states = None
    if model.index.state_weight:
        states = model.index.standardised(model.states.read(prompts))
    rows = Rows(edits_of(requests, "add"), model.encoder.encode(prompts), neurons.half(), states)
    model._change("add", [], rows.cpu())
