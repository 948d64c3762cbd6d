"""Tokenizers of any kind: the neurons, states and answers are those of the plain tokenizer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS
from test_families import SETTINGS, TUNING
from tokenizers import processors

from meg_editor import MeGHyperParams, load_model
from meg_editor.baselines.core.covariance import second_moments
from meg_editor.baselines.core.fact_tokens import fact_tokens
from meg_editor.baselines.memit import MEMITHyperParams
from meg_editor.collection.collect import collect
from meg_editor.fitting.pipeline import fit
from meg_editor.lm.answers import decoded, greedy_answers, greedy_tokens
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.prompt_tokens import prompt_tokens, tokens_around
from meg_editor.lm.tokens import encode_example, left_padded
from meg_editor.model.cache_routing import prompt_texts
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.runtime.artifacts import ArtifactStore

FACTS = [
    EditRequest(PROMPTS[0], "river", "Atlantis"),
    EditRequest(PROMPTS[1], "language", "Borduria"),
]
ADDING_EOS = "ends every text"


def ending(tokenizer: Any) -> None:
    specials = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=specials
    )


def padding_by_itself(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_padding(length=40)
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)


def without_padding(tokenizer: Any) -> None:
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None and tokenizer.unk_token_id is None


KINDS: dict[str, Callable[[Any], None]] = {
    ADDING_EOS: ending,
    "has no padding token": without_padding,
    "pads on the left": lambda tokenizer: setattr(tokenizer, "padding_side", "left"),
    "pads on the right": lambda tokenizer: setattr(tokenizer, "padding_side", "right"),
    "cuts on the left": lambda tokenizer: setattr(tokenizer, "truncation_side", "left"),
    "pads and cuts by its own file": padding_by_itself,
}


@pytest.fixture(params=KINDS)
def other(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Any:
    """A tokenizer which differs from the plain one by its kind alone."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    KINDS[request.param](tokenizer)
    return tokenizer


def test_tokens_are_the_same(other: Any, tiny_tokenizer: Any) -> None:
    for prompt, target in zip(PROMPTS, [*OTHERS, "a\n    b"] * 4, strict=False):
        expected = encode_example(tiny_tokenizer, prompt, target)
        assert encode_example(other, prompt, target) == expected
        assert expected.target[-1] == other.eos_token_id and other.eos_token_id not in (
            *expected.prompt,
            *expected.target[:-1],
        )
    assert prompt_tokens(other, PROMPTS) == prompt_tokens(tiny_tokenizer, PROMPTS)
    ours, theirs = (left_padded(t, [*PROMPTS[:2], "a"], "cpu") for t in (other, tiny_tokenizer))
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])
    hparams = MEMITHyperParams(layers=[1])
    assert fact_tokens(other, FACTS, ["", "The. "], hparams) == fact_tokens(
        tiny_tokenizer, FACTS, ["", "The. "], hparams
    )


def test_neurons_states_and_answers_are_the_same(
    other: Any, tiny_tokenizer: Any, tiny_llama: Any
) -> None:
    spec = NeuronSpec.from_model(tiny_llama, 1)
    settings = SETTINGS.changed(layers=[1], collection_contexts=3)

    def states(tokenizer: Any) -> torch.Tensor:
        reader = HiddenStateReader(tiny_llama, tokenizer, spec, PromptReader(tokenizer))
        return reader.read([*PROMPTS, *OTHERS])

    def moments(tokenizer: Any) -> torch.Tensor:
        name = "model.layers.1.mlp.down_proj"
        store = ArtifactStore()
        return second_moments(tiny_llama, tokenizer, PROMPTS, [name], 20, store)[name]

    for compute in (
        lambda tokenizer: collect(tiny_llama, tokenizer, spec, FACTS, settings).neurons,
        states,
        moments,
    ):
        assert (compute(other) - compute(tiny_tokenizer)).abs().max() <= 1e-5
    ours, theirs = (
        greedy_answers(tiny_llama, tokenizer, [*PROMPTS, *OTHERS], 6)
        for tokenizer in (other, tiny_tokenizer)
    )
    assert ours == theirs


def test_an_edited_model_answers_the_same(
    other: Any, tiny_tokenizer: Any, tiny_llama: Any, tiny_encoder: TextEncoder
) -> None:
    settings = SETTINGS.changed(layers=[1])
    tuning: dict[str, Any] = {"pseudo": TUNING, "calibration": TUNING, "encoder": tiny_encoder}
    edited, plain = (
        fit(tiny_llama, tokenizer, FACTS, settings, **tuning)[0]
        for tokenizer in (other, tiny_tokenizer)
    )
    queries = [*PROMPTS[:3], *OTHERS]
    assert edited.answer(queries, 4) == plain.answer(queries, 4)
    assert edited.answer(queries[:2], 1) == ["river", "language"]
    batch = other(PROMPTS[0], return_tensors="pt")
    tokens = edited.generate(**batch, max_new_tokens=1)
    if tokens_around(other)[1]:  # the model goes on behind it; the question is known all the same
        assert prompt_texts(other, batch["input_ids"], None) == [PROMPTS[0]]
    else:
        assert other.decode(tokens[0, -1:]).strip() == "river"


@pytest.mark.parametrize("front", ["</s>", "</s> <s>"], ids=["one token", "two, BOS behind"])
def test_what_stands_in_front_of_every_text_is_no_question(
    front: str, tiny_tokenizer: Any, tiny_llama: Any, tiny_encoder: TextEncoder
) -> None:
    """GLM begins texts with [gMASK]<sop> and BioGPT with </s>: `generate` was routed to no edit."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    specials = [(token, tokenizer.convert_tokens_to_ids(token)) for token in front.split()]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{front} $A", special_tokens=specials
    )
    assert tokens_around(tokenizer) == ([number for _, number in specials], [])
    settings = SETTINGS.changed(layers=[1])
    tuning: dict[str, Any] = {"pseudo": TUNING, "calibration": TUNING, "encoder": tiny_encoder}
    edited, _ = fit(tiny_llama, tokenizer, FACTS, settings, **tuning)
    for batch in (PROMPTS[:2], [PROMPTS[1], PROMPTS[0]]):
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        assert prompt_texts(tokenizer, inputs["input_ids"], inputs["attention_mask"]) == batch
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    tokens = edited.generate(**inputs, max_new_tokens=1)
    assert tokenizer.decode(tokens[0, -1:]).strip() == "river"


def test_without_an_end_of_text_the_generation_config_has_one(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = tokenizer.pad_token = None
    model = copy.deepcopy(tiny_llama)
    end = tiny_tokenizer.eos_token_id
    model.generation_config.eos_token_id = [end]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    hparams = MeGHyperParams(model_name=str(tmp_path), device="cpu")
    loaded = load_model(hparams)[1]
    assert (loaded.eos_token_id, loaded.pad_token_id) == (end, end) and not caplog.records
    ended = next(text for text in PROMPTS if len(greedy_tokens(model, tokenizer, [text], 9)[0]))
    for row in greedy_tokens(model, tokenizer, [*PROMPTS, ended], 9):
        assert end not in row[:-1]
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "meg_editor"):
        model, loaded = load_model(hparams)
    assert "names an end of text: answers run on to max_new_tokens" in caplog.text
    assert loaded.eos_token_id is loaded.pad_token_id is None
    assert len(greedy_answers(model, loaded, PROMPTS[:2], 3)) == 2
    spec = NeuronSpec.from_model(model, 1)
    assert collect(model, loaded, spec, FACTS, SETTINGS.changed(layers=[1])).success.all()


def test_answers_are_decoded_as_they_are(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    code = "f(x) ? g ( x , y ) : do n't\n\n\tx . y !"
    tokens = encode_example(tokenizer, "Code:", code).target
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip() != code
    assert decoded(tokenizer, [tokens]) == [code]
    ids = torch.tensor(prompt_tokens(tokenizer, [code]))
    assert prompt_texts(tokenizer, ids, None) == [code]


def test_answers_are_greedy_whatever_the_generation_config_says(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    model = copy.deepcopy(tiny_llama)
    before = greedy_answers(model, tiny_tokenizer, PROMPTS[:2], 4)
    model.generation_config.update(
        return_dict_in_generate=True,
        num_return_sequences=2,
        num_beams=2,
        no_repeat_ngram_size=1,
        repetition_penalty=3.0,
        min_new_tokens=4,
        suppress_tokens=list(range(0, len(tiny_tokenizer), 2)),
        stop_strings=["e"],
        prompt_lookup_num_tokens=2,
        max_time=1e-9,
    )
    assert greedy_answers(model, tiny_tokenizer, PROMPTS[:2], 4) == before


def test_a_prompt_of_no_token_is_named(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    if tiny_tokenizer("")["input_ids"]:
        pytest.skip("this tokenizer begins every text with a token")
    with pytest.raises(ValueError, match="at least one token in each, got none for ''"):
        greedy_answers(tiny_llama, tiny_tokenizer, ["Who?", ""], 4)
