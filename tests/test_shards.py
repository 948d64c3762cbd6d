"""Collection in shards: the same neurons whoever computes them, and nothing computed twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROMPTS

from meg_editor.collection import shards
from meg_editor.collection.collect import collect
from meg_editor.collection.shards import collect_in_shards
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.processes import Processes

SETTINGS = MeGHyperParams(layers=[1], collection_steps=3)
RUNTIME = RuntimeConfig(collection_shard_size=3)
FACTS = [EditRequest(prompt, "Lima") for prompt in PROMPTS[:7]]


@pytest.fixture
def run(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    spec = NeuronSpec.from_model(tiny_llama, 1)

    def run(facts: Any = FACTS, store: Any = None, processes: Any = None, **changes: Any) -> Any:
        return collect_in_shards(
            tiny_llama,
            tiny_tokenizer,
            spec,
            facts,
            dataclasses.replace(SETTINGS, **changes),
            RUNTIME,
            ["inputs"],
            store or ArtifactStore(),
            processes or Processes(),
        )

    return run


def test_shards_are_collections_of_their_facts(
    run: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    spec = NeuronSpec.from_model(tiny_llama, 1)
    result = run()
    assert result.collection.neurons.shape == (7, spec.size) and not result.resumed
    parts = [FACTS[:2], FACTS[2:4], FACTS[4:]]  # three of nearly one size
    alone = [collect(tiny_llama, tiny_tokenizer, spec, part, SETTINGS) for part in parts]
    assert torch.equal(result.collection.neurons, torch.cat([part.neurons for part in alone]))
    assert torch.equal(result.collection.steps, torch.cat([part.steps for part in alone]))


def test_no_facts(run: Any) -> None:
    result = run([])
    assert result.collection.neurons.shape[0] == 0 and not result.resumed and result.seconds == 0


def test_a_crash_loses_the_shard_in_work(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = shards.collect

    def failing(*arguments: Any) -> Any:
        calls.append(len(arguments[3]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(shards, "collect", failing)
    with pytest.raises(KeyboardInterrupt):
        run(store=ArtifactStore(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    result = run(store=ArtifactStore(tmp_path))
    assert calls == [2, 2, 3, 3] and not result.resumed
    again = run(store=ArtifactStore(tmp_path))
    assert again.resumed and again.key == result.key
    assert torch.equal(again.collection.neurons, result.collection.neurons)


def test_results_on_disk_are_not_held_in_memory_too(run: Any, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    run(store=store)
    assert store._memory == {}


class Together(Processes):
    """Two processes one after the other: what the other found is known already."""

    def __init__(self, rank: int, others: list[Any]) -> None:
        super().__init__(rank, 2)
        self.others, self.mine = others, []

    def each(self, compute: Any) -> Any:
        self.mine = list(compute())
        return [*self.others, *self.mine]


def test_processes_share_the_shards_and_find_the_same(run: Any) -> None:
    whole = run()
    first = Together(0, [])
    run(facts=FACTS[:6], processes=first)  # its shards alone: gathered is only its own half
    assert [shard for shard, _ in first.mine] == [0]
    first, second = Together(0, []), Together(1, [])
    with pytest.raises(ZeroDivisionError):
        second.each(lambda: [1 / 0])
    partial = run(processes=first)
    assert [shard for shard, _ in first.mine] == [0, 2]
    second.others = first.mine
    both = run(processes=second)
    assert [shard for shard, _ in second.mine] == [1]
    assert torch.equal(both.collection.neurons, whole.collection.neurons)
    assert both.key == whole.key != partial.key
