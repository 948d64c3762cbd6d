"""Gated baselines under threads, copies and garbage collection: state belongs to its call."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS

from meg_editor.baselines.core.activations import activations_at
from meg_editor.baselines.horen import HoReNHyperParams, apply_horen_to_model, left_padding
from meg_editor.baselines.neuraldb import NeuralDBHyperParams, apply_neuraldb_to_model
from meg_editor.baselines.retrieval import RetrievalHyperParams, apply_retrieval_to_model
from meg_editor.baselines.scen import SCENHyperParams, apply_scen_to_model
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.last_token import inputs_at_last
from meg_editor.requests.request import EditRequest

EDITS = [
    EditRequest(prompt, target, prompt.split()[-2])
    for prompt, target in zip(
        PROMPTS[:4], ("tea", "two rivers", "ore", "salt and tea"), strict=True
    )
]
QUERIES = [
    text for edit, other in zip(EDITS, OTHERS, strict=False) for text in (edit.prompt, other)
]
Editor = Callable[[], Any]


@pytest.fixture
def editors(tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: Any) -> dict[str, Editor]:
    """Method -> a function that edits the tiny model by it."""
    pseudo = [EditRequest(text, "x") for text in [*OTHERS, *PROMPTS[8:]]]
    material = (tiny_llama, tiny_tokenizer, EDITS)
    horen = HoReNHyperParams(layers=[1], edit_lr=0.3, hopfield_key_match_threshold=0.97)
    scen = SCENHyperParams(layers=[1], index_steps=400, theta=0.6)
    neuraldb = NeuralDBHyperParams(layers=[1], gate_threshold=0.9, fact_token="last")
    retrieval = RetrievalHyperParams(threshold=0.9999)
    return {
        "horen": lambda: apply_horen_to_model(*material, horen)[0],
        "scen": lambda: apply_scen_to_model(*material, scen, pseudo=pseudo)[0],
        "neuraldb": lambda: apply_neuraldb_to_model(*material, neuraldb)[0],
        "retrieval": lambda: apply_retrieval_to_model(*material, retrieval, encoder=tiny_encoder)[
            0
        ],
    }


@pytest.fixture
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def hooks_on(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.usefixtures("_switching_often")
@pytest.mark.parametrize("name", ["horen", "scen", "neuraldb", "retrieval"])
def test_four_threads_are_answered_as_one(
    name: str, editors: dict[str, Editor], tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    model = editors[name]()

    def answer(prompt: str) -> str:
        return greedy_answers(model, tiny_tokenizer, [prompt], 6)[0]

    alone = {prompt: answer(prompt) for prompt in QUERIES}
    unedited = {p: greedy_answers(tiny_llama, tiny_tokenizer, [p], 6)[0] for p in QUERIES}
    assert alone != unedited
    prompts = [QUERIES[(3 * row) % len(QUERIES)] for row in range(48)]
    with ThreadPoolExecutor(5) as pool:
        base = [
            pool.submit(greedy_answers, tiny_llama, tiny_tokenizer, [p], 6) for p in prompts[::4]
        ]
        together = list(pool.map(answer, prompts))
        assert [f.result()[0] for f in base] == [unedited[p] for p in prompts[::4]]
    assert together == [alone[prompt] for prompt in prompts]


@pytest.mark.parametrize("name", ["horen", "scen", "neuraldb", "retrieval"])
def test_no_hook_stays_on_the_base_of_a_deleted_model(
    name: str, editors: dict[str, Editor], tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    gc.collect()
    before = hooks_on(tiny_llama)
    model = editors[name]()
    registered = hooks_on(tiny_llama)
    greedy_answers(model, tiny_tokenizer, QUERIES[:2], 2)
    assert hooks_on(tiny_llama) == registered  # none comes with a call
    del model
    gc.collect()
    assert hooks_on(tiny_llama) == before


@pytest.mark.parametrize("name", ["horen", "scen"])
def test_a_copy_of_the_base_is_unedited_and_a_copy_of_the_model_answers_as_it(
    name: str, editors: dict[str, Editor], tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    before, model = hooks_on(tiny_llama), editors[name]()
    assert hooks_on(tiny_llama) > before
    other = copy.deepcopy(tiny_llama)
    greedy_answers(other, tiny_tokenizer, QUERIES[:1], 2)  # dead hooks leave when they are called
    gc.collect()
    assert hooks_on(other) == before
    twin = copy.deepcopy(model)
    alone = greedy_answers(model, tiny_tokenizer, QUERIES, 6)
    del model
    gc.collect()
    assert hooks_on(tiny_llama) == before < hooks_on(twin.base)
    assert greedy_answers(twin, tiny_tokenizer, QUERIES, 6) == alone
    assert greedy_answers(other, tiny_tokenizer, QUERIES, 6) != alone


def test_padding_before_prompts_by_any_mask() -> None:
    flat = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    seen = flat.bool()[:, None, None, :] & torch.ones(4, 6).tril().bool()[None, None, :, :4]
    seen = torch.nn.functional.pad(seen, (0, 2))  # a static cache is longer
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    for mask in (flat, seen, added, {"sliding_attention": None, "full_attention": seen}):
        assert left_padding(mask).tolist() == [2, 0]
    assert left_padding(None) == 0


def test_a_static_cache_changes_no_answer(editors: dict[str, Editor], tiny_tokenizer: Any) -> None:
    """The decoder's mask has four dimensions then: HoReN took padding for the prompt."""
    tiny_tokenizer.padding_side = "left"
    batch = tiny_tokenizer([QUERIES[0], f"Well. {QUERIES[2]}"], padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for method in ("horen", "scen"):
        model = editors[method]()
        plain = model.generate(**batch, **options)
        assert plain.tolist() != model.base.generate(**batch, **options).tolist()
        static = model.generate(**batch, **options, cache_implementation="static")
        assert static.tolist() == plain.tolist()


def test_the_input_at_the_last_token(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    rows = tiny_tokenizer(QUERIES)["input_ids"]
    name = "model.layers.1.mlp"
    result = inputs_at_last(tiny_llama, name, rows, rows_at_once=3)
    ends = [len(row) - 1 for row in rows]
    torch.testing.assert_close(result, activations_at(tiny_llama, rows, ends, [name])[name].inputs)


@pytest.mark.usefixtures("_switching_often")
def test_horen_routes_while_others_are_answered(
    editors: dict[str, Editor], tiny_tokenizer: Any
) -> None:
    model = editors["horen"]()
    expected = [decision.is_edit for decision in model.route(QUERIES)]
    alone = greedy_answers(model, tiny_tokenizer, QUERIES[:1], 6)
    with ThreadPoolExecutor(3) as pool:
        answers = [
            pool.submit(greedy_answers, model, tiny_tokenizer, QUERIES[:1], 6) for _ in range(12)
        ]
        routed = [pool.submit(model.route, QUERIES) for _ in range(24)]
        assert all([d.is_edit for d in each.result()] == expected for each in routed)
        assert all(each.result() == alone for each in answers)
