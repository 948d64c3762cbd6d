"""Collection in shards, each stored when finished, distributed over processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from meg_editor.collection.collect import Collection, collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import Artifact, ArtifactStore, Tensors, digest
from meg_editor.runtime.processes import Processes


@dataclass(frozen=True)
class Shards:
    """Result of `collect_in_shards`.

    Attributes:
        collection: of all facts, in their order.
        key: digest of the inputs.
        seconds: of the slowest process.
        resumed: whether every shard was loaded instead of computed.
    """

    collection: Collection
    key: str
    seconds: float
    resumed: bool


def collect_in_shards(
    model: CausalLM,
    tokenizer: Tokenizer,
    spec: NeuronSpec,
    requests: Sequence[EditRequest],
    hparams: MeGHyperParams,
    runtime: RuntimeConfig,
    inputs: Sequence[Any],
    store: ArtifactStore,
    processes: Processes,
) -> Shards:
    """`collect` for N facts in shards of at most `runtime.collection_shard_size`.

    Shards depend on the facts alone: any number of processes computes the same neurons.

    Args:
        inputs: what the neurons depend on besides the facts, as JSON types: the store's key.
        store: finished shards are loaded from it.
        processes: each computes every `count`-th shard.

    Raises:
        What `collect` raises, in all processes.
    """
    count = math.ceil(len(requests) / runtime.collection_shard_size)
    parts = [
        requests[len(requests) * shard // count : len(requests) * (shard + 1) // count]
        for shard in range(count)
    ]

    def compute(part: Sequence[EditRequest]) -> Tensors:
        return dict(vars(collect(model, tokenizer, spec, part, hparams, runtime)))

    def facts(part: Sequence[EditRequest]) -> list[Any]:
        texts = [text for fact in part for text in (fact.prompt, fact.target_new)]
        return [texts, [list(row) for row in tokenizer(texts)["input_ids"]]]

    def shards_of_this_process() -> list[tuple[int, Artifact]]:
        return [
            (shard, store.run("collection", [*inputs, *facts(part)], partial(compute, part)))
            for shard, part in list(enumerate(parts))[processes.rank :: processes.count]
        ]

    gathered = processes.each(shards_of_this_process)
    artifacts = [artifact for _, artifact in sorted(gathered, key=lambda item: item[0])]
    seconds = [0.0] * processes.count
    for shard, artifact in gathered:
        seconds[shard % processes.count] += artifact.seconds
    tensors = [artifact.tensors for artifact in artifacts]
    collection = Collection(
        *(
            torch.cat([shard[name] for shard in tensors]) if tensors else empty
            for name, empty in vars(Collection.empty(spec)).items()
        )
    )
    return Shards(
        collection,
        digest([artifact.key for artifact in artifacts]),
        max(seconds),
        bool(artifacts) and all(artifact.resumed for artifact in artifacts),
    )
