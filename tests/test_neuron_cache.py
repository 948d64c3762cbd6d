"""Recently used neurons are not generated again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import OTHERS, PROMPTS
from torch import Tensor

from meg_editor.config.runtime import RuntimeConfig
from meg_editor.generators.cache import NeuronCache
from meg_editor.model.meg_model import MeGModel


@pytest.fixture
def missing_edits() -> list[list[int]]:
    return []


@pytest.fixture
def generate(missing_edits: list[list[int]]) -> Callable[[list[int]], Tensor]:
    def rows(edits: list[int]) -> Tensor:
        missing_edits.append(edits)
        return torch.tensor([[float(edit), 10.0 * edit] for edit in edits])

    return rows


def test_only_what_is_missing_is_generated_and_the_oldest_is_forgotten(
    missing_edits: list[list[int]], generate: Callable[[list[int]], Tensor]
) -> None:
    cache = NeuronCache(3)
    for edits in ([4, 1, 4], [1], [2, 4], [5], [4, 2, 5], [1]):
        assert cache.get(edits, generate)[:, 0].tolist() == edits
        assert len(cache) <= 3
    # 5 drives out 1, which was used before 2 and 4; then 1 drives out 4.
    assert missing_edits == [[4, 1], [2], [5], [1]]
    cache.get([4], generate)
    assert missing_edits[-1] == [4]
    cache.clear()
    assert len(cache) == 0


def test_more_edits_at_once_than_fit(
    missing_edits: list[list[int]], generate: Callable[[list[int]], Tensor]
) -> None:
    cache = NeuronCache(2)
    assert cache.get([7, 8, 9, 7], generate)[:, 1].tolist() == [70, 80, 90, 70]
    assert missing_edits == [[7, 8, 9]] and len(cache) == 2


def test_a_kept_neuron_does_not_keep_its_batch() -> None:
    cache = NeuronCache(1)
    cache.get([0, 1], lambda _: torch.zeros(2, 5))
    (retained,) = cache._neurons.values()
    assert retained.untyped_storage().nbytes() == 5 * 4


@pytest.mark.parametrize("generator", ["dit", "mlp", "bank"])
def test_answers_from_the_cache_are_the_same(
    make_meg_model: Callable[..., MeGModel], generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_meg_model(generator)
    other = make_meg_model(generator, runtime=RuntimeConfig(neuron_cache=0))
    queries = [PROMPTS[3], OTHERS[0], PROMPTS[1]]
    routing = model.route(queries)
    first = model.neurons(routing)
    assert first is not None and len(model.neuron_cache) == 2
    torch.testing.assert_close(first, other.neurons(other.route(queries)))
    assert len(other.neuron_cache) == 0

    def refuse(*_: object) -> Tensor:
        raise AssertionError("generated again")

    monkeypatch.setattr(model.generator, "of_edits", refuse)
    monkeypatch.setattr(model.generator, "generate", refuse)
    again = model.neurons(model.route(queries))
    assert again is not None and torch.equal(first, again)
    with pytest.raises(AssertionError):
        model.neurons(model.route([PROMPTS[2]]))
    with pytest.raises(AssertionError):  # other steps are another neuron
        model.neurons(routing, steps=1)


def test_neurons_of_single_queries_are_not_kept(make_meg_model: Callable[..., MeGModel]) -> None:
    model = make_meg_model(generator_anchored=False)
    assert model.neurons(model.route(PROMPTS[:2])) is not None and len(model.neuron_cache) == 0


def test_a_model_which_moves_forgets_the_neurons_of_the_old_place(
    make_meg_model: Callable[..., MeGModel],
) -> None:
    model = make_meg_model("bank")
    model.decide(PROMPTS[:2])
    assert len(model.neuron_cache) == 2
    assert model.to(torch.float64) is model and len(model.neuron_cache) == 0
