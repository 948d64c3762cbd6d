"""Collection in shards: stored one by one, and shared among processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from meg_editor.collection.collect import Collection, collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore, Stage, Tensors, digest
from meg_editor.runtime.processes import Processes


@dataclass(frozen=True)
class Shards:
    """What `collect_in_shards` found.

    Attributes:
        collection: of all facts, in their order.
        key: a digest of everything it was made from.
        seconds: that the longest-working process took.
        resumed: whether every shard was found instead of computed.
    """

    collection: Collection
    key: str
    seconds: float
    resumed: bool


def collect_in_shards(
    model: Any,
    tokenizer: Any,
    spec: NeuronSpec,
    requests: Sequence[EditRequest],
    hparams: MeGHyperParams,
    inputs: Sequence[Any],
    store: ArtifactStore,
    processes: Processes,
) -> Shards:
    """`collect` for N facts, at most `collection_shard_size` at a time; processes share the work.

    The shards depend on the facts alone, so that any number of processes finds the same neurons.

    Args:
        inputs: what the neurons depend on beside the facts, as JSON types, for the store.

    Raises:
        What `collect` raises, in all processes.
    """
    count = math.ceil(len(requests) / hparams.collection_shard_size)
    parts = [
        requests[len(requests) * shard // count : len(requests) * (shard + 1) // count]
        for shard in range(count)
    ]

    def compute(part: Sequence[EditRequest]) -> Tensors:
        return dict(vars(collect(model, tokenizer, spec, part, hparams)))

    def own() -> list[tuple[int, Stage]]:
        return [
            (shard, store.run("collection", [*inputs, _texts(part)], partial(compute, part)))
            for shard, part in list(enumerate(parts))[processes.rank :: processes.count]
        ]

    gathered = processes.each(own)
    stages = [stage for _, stage in sorted(gathered, key=lambda item: item[0])]
    worked = [0.0] * processes.count
    for shard, stage in gathered:
        worked[shard % processes.count] += stage.seconds
    tensors = [stage.tensors for stage in stages]
    collection = Collection(
        *(
            torch.cat([shard[name] for shard in tensors]) if tensors else empty
            for name, empty in vars(Collection.empty(spec)).items()
        )
    )
    return Shards(
        collection,
        digest([stage.key for stage in stages]),
        max(worked),
        bool(stages) and all(stage.resumed for stage in stages),
    )


def _texts(facts: Sequence[EditRequest]) -> list[list[Any]]:
    return [[fact.prompt, fact.target_new] for fact in facts]
