"""Stage 3: one neuron per fact (section 4.1 c.1); facts edited earlier keep theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meg_editor.collection.collect import Collection
from meg_editor.collection.shards import Shards, collect_in_shards
from meg_editor.fitting.context import FitContext
from meg_editor.fitting.stage import declared
from meg_editor.requests.request import EditRequest

COLLECTION_SETTINGS = (
    "collection_lr",
    "collection_steps",
    "collection_optimizer",
    "collection_schedule",
    "collection_contexts",
    "collection_loss_threshold",
    "prompt_template",
    "seed",
)


class CollectionStage:
    """Collects in shards, each with a key of its own, and so is no `Stage` with one.

    Args:
        earlier: neurons (P,) of edits made before, which are taken as they are.
    """

    name = "collection"
    settings = COLLECTION_SETTINGS

    def __init__(self, context: FitContext, earlier: Mapping[EditRequest, Tensor]) -> None:
        self.context, self.earlier = context, earlier
        self.hparams = declared(context.hparams, self.settings)

    def inputs(self) -> list[Any]:
        """Everything the run reads beside the facts of a shard."""
        return [self.hparams.to_dict(), *self.context.model_key]

    def run(self) -> tuple[Collection, Shards]:
        """The neurons of all edits, and how those of the new ones came about."""
        c = self.context
        new = [row for row, edit in enumerate(c.edits) if edit not in self.earlier]
        shards = collect_in_shards(
            c.model,
            c.tokenizer,
            c.spec,
            [c.edits[row] for row in new],
            self.hparams,
            c.runtime,
            self.inputs(),
            c.store,
            c.processes,
        )
        collection = Collection.empty(c.spec, len(c.edits))
        collected = vars(shards.collection).values()
        for whole, part in zip(vars(collection).values(), collected, strict=True):
            whole[torch.tensor(new, dtype=torch.long)] = part
        for row, edit in enumerate(c.edits):
            if edit in self.earlier:
                collection.neurons[row] = self.earlier[edit]
        return collection, shards
