"""The LLM's state at the end of a query, against a plain forward pass of that query alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_neuron import FAMILIES, LAYER, LAYERS, random_neurons, spec_of, tiny
from torch import Tensor

from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.requests.prompts import PromptReader
from meg_editor.routing.hidden_states import HiddenStateReader

QUERIES = ["abcdefg", "b", "cab", "hello world", "zz"]


class Letters:
    """A tokenizer: a token per letter."""

    chat_template = None

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[3 + ord(letter) % 50 for letter in text] for text in texts]}


def reader_of(family: str, template: str = "{}") -> HiddenStateReader:
    tokenizer: Any = Letters()
    return HiddenStateReader(
        tiny(family), tokenizer, spec_of(family), PromptReader(tokenizer, template)
    )


def alone(family: str, query: str) -> Tensor:
    """(D,) from a forward pass of one unpadded query, by a hook of our own."""
    module = tiny(family).get_submodule(spec_of(family).read)
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tiny(family)(input_ids=torch.tensor(Letters()([query])["input_ids"]))
    handle.remove()
    return seen[0].reshape(len(query), -1)[-1]


@pytest.mark.parametrize("rows", [1, 2, 256])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_query_alone(family: str, rows: int) -> None:
    states = reader_of(family).read(QUERIES, rows)
    assert states.dtype == torch.float32
    expected = torch.stack([alone(family, query) for query in QUERIES])
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in states.round(decimals=3).tolist()}) == len(QUERIES)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_below_the_middle_nothing_is_read(family: str) -> None:
    """With the neuron in layer 0 of 3 the states are those of layer 1; in layer 2 its own."""
    tokenizer: Any = Letters()
    reader = PromptReader(tokenizer)
    specs = [NeuronSpec.from_model(tiny(family), layer) for layer in range(LAYERS)]
    readers = [HiddenStateReader(tiny(family), tokenizer, spec, reader) for spec in specs]
    assert [states.module for states in readers] == [specs[n].read for n in (1, 1, 2)]
    lowest = readers[0].read(QUERIES)
    assert torch.equal(lowest, readers[1].read(QUERIES))
    assert not torch.allclose(lowest, readers[2].read(QUERIES), atol=1e-2)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_layers_above_the_neuron_are_not_run(family: str) -> None:
    ran = []
    prefix = spec_of(family).read.partition(f".{LAYER}.")[0]
    blocks = tiny(family).get_submodule(prefix)
    handles = [
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(blocks)
    ]
    reader_of(family).read(QUERIES)
    for handle in handles:
        handle.remove()
    assert ran == list(range(LAYER + 1))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_attached_neurons_neither_change_states_nor_are_disturbed(family: str) -> None:
    spec, model = spec_of(family), tiny(family)
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with NeuronHook(model, spec) as hook, hook.attached(random_neurons(spec, 2)), torch.no_grad():
        before = model(input_ids=tokens).logits
        states = reader_of(family).read(QUERIES)
        after = model(input_ids=tokens).logits
    assert torch.equal(before, after)
    torch.testing.assert_close(states, reader_of(family).read(QUERIES))


def test_nothing_stays_in_the_model() -> None:
    module = tiny("llama").get_submodule(spec_of("llama").read)
    reader = reader_of("llama")
    reader.read(QUERIES)
    with pytest.raises(Exception, match="(?i)index|range"):
        reader.model(input_ids=torch.tensor([[10**6]]))
    with pytest.raises(TypeError):
        reader.read([None])  # type: ignore[list-item]
    assert not module._forward_pre_hooks


def test_the_template_is_put_around_queries() -> None:
    wrapped = reader_of("llama", "q{}a").read(QUERIES)
    expected = torch.stack([alone("llama", f"q{query}a") for query in QUERIES])
    torch.testing.assert_close(wrapped, expected, rtol=1e-4, atol=1e-4)


def test_no_queries_have_no_states() -> None:
    assert reader_of("llama").read([]).shape == (0, spec_of("llama").hidden_size)
