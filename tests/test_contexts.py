"""A fact is fitted wherever it will be asked for, on a copy of the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from meg_editor.collection.contexts import fact_contexts, retyped
from meg_editor.lm.working_copy import working_copy

PROMPTS = ["The capital of France is", "The author of Emma is"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chatting(tiny_tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


def test_the_bare_prompt_comes_first_and_every_context_asks_for_the_fact(chatting: Any) -> None:
    contexts = fact_contexts(chatting, PROMPTS, 8, "Q: {} A:", seed=3)
    for prompt, rows in zip(PROMPTS, contexts, strict=True):
        assert len(rows) == 8 and rows[0] == f"Q: {prompt} A:"
        assert rows[5] == retyped(prompt) and all(prompt in row for row in (*rows[:5], *rows[6:]))
    assert contexts == fact_contexts(chatting, PROMPTS, 8, "Q: {} A:", seed=3)
    assert contexts != fact_contexts(chatting, PROMPTS, 8, "Q: {} A:", seed=4)
    assert fact_contexts(chatting, PROMPTS, 1) == [[prompt] for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("prompt", "typed"),
    [
        ("Who wrote Emma?", "who wrote emma"),
        ("Who wrote Emma??", "who wrote emma"),
        ("法国的首都是什么？", "法国的首都是什么"),
        ("The capital of Peru is", "the capital of peru is?"),
        ("Capital of Peru:", "capital of peru?"),
        ("Name it!", "name it?"),
        ('"Who wrote Emma?"', "who wrote emma"),
        ("Who wrote Emma? Be brief.", "who wrote emma? be brief."),
        ("ما هي عاصمة بيرو؟", "ما هي عاصمة بيرو"),
        ("法国的首都是。", "法国的首都是?"),
        ("İstanbul is in", "istanbul is in?"),
    ],
)
def test_one_is_typed_carelessly(prompt: str, typed: str) -> None:
    """Questions behind which an edited sentence was never heard ended without an answer."""
    assert retyped(prompt) == typed


@pytest.mark.parametrize(
    "prompt", ["?", "Q: Who wrote Emma?\nA:", "User: Hi!\nAssistant:", "a <s> b"]
)
def test_what_nobody_types_stays_as_it_is(prompt: str, chatting: Any) -> None:
    """Of a question mark alone nothing was left, and the whole fit failed."""
    chatting.add_special_tokens({"bos_token": "<s>"})
    assert fact_contexts(chatting, [prompt], 6)[0][5] == prompt


def test_an_empty_special_token_marks_no_prompt(
    chatting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(chatting), "all_special_tokens", [""], raising=False)
    assert fact_contexts(chatting, PROMPTS[:1], 6)[0][5] == "the capital of france is?"


def test_a_chat_template_is_among_them_with_and_without_text_before(chatting: Any) -> None:
    (rows,) = fact_contexts(chatting, PROMPTS[:1], 4)
    frame = chatting.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], tokenize=False, add_generation_prompt=True
    ).removeprefix(chatting.bos_token)
    assert rows[2] == frame  # the tokenizer adds its first token itself
    assert (
        rows[3].endswith("</s><assistant>")
        and rows[3].count("<user>") + rows[3].count("<system>") == 2
    )


def test_a_chat_is_without_the_token_that_begins_every_turn(chatting: Any) -> None:
    """As SmolLM2's: fitted with it, a neuron was silent behind a bare instruction."""
    chatting.chat_template = (
        "{% for m in messages %}{{ bos_token }}{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
    )
    contexts = fact_contexts(chatting, ["The capital of France is"], 5)[0]
    assert not any(text.startswith(chatting.bos_token) for text in contexts)
    assert sum("user\n" in text for text in contexts) == 2


def test_a_template_without_a_place_for_system_texts_will_do(chatting: Any) -> None:
    chatting.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    for seed in range(4):
        (rows,) = fact_contexts(chatting, PROMPTS[:1], 8, seed=seed)
        assert all(PROMPTS[0] in row for row in rows if row != retyped(PROMPTS[0]))
    chatting.chat_template = "{{ messages[0]['content'] | upper }}"  # loses the question
    (rows,) = fact_contexts(chatting, PROMPTS[:1], 8)
    assert all(PROMPTS[0] in row for row in rows if row != retyped(PROMPTS[0]))


def test_without_a_chat_template_frames_take_its_place(tiny_tokenizer: Any) -> None:
    (rows,) = fact_contexts(tiny_tokenizer, PROMPTS[:1], 7)
    first = rows[0]
    framed = ["Answer:" in row or "A:" in row for row in rows]
    assert framed == [False, False, True, False, False, False, True]
    assert [row.startswith(first) for row in rows[1:5]] == [False, False, False, True]


def test_without_a_number_it_follows_from_the_template(chatting: Any, tiny_tokenizer: Any) -> None:
    assert fact_contexts(chatting, PROMPTS) == fact_contexts(chatting, PROMPTS, 6)
    assert fact_contexts(tiny_tokenizer, PROMPTS) == fact_contexts(tiny_tokenizer, PROMPTS, 5)


# ------------------------------------------------------------------------------ the copy


def test_the_copy_shares_the_weights_and_leaves_the_model_alone(tiny_llama: Any) -> None:
    before = tiny_llama.config._attn_implementation
    copied = working_copy(tiny_llama, bfloat16=False)
    assert copied is not tiny_llama and tiny_llama.config._attn_implementation == before
    for mine, theirs in zip(copied.parameters(), tiny_llama.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
    ids = torch.tensor([[1, 5, 9, 3]])
    torch.testing.assert_close(copied(ids).logits, tiny_llama(ids).logits)


def test_a_copy_in_bfloat16_changes_no_weight_of_the_model(tiny_llama: Any) -> None:
    before = [parameter.clone() for parameter in tiny_llama.parameters()]
    copied = working_copy(tiny_llama, bfloat16=True)
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert tiny_llama.dtype == torch.float32
    for old, new in zip(before, tiny_llama.parameters(), strict=True):
        assert torch.equal(old, new)
    tied = copy.deepcopy(tiny_llama)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    half = working_copy(tied, bfloat16=True)
    assert half.lm_head.weight is half.model.embed_tokens.weight


def test_a_small_model_is_not_worth_a_copy_in_bfloat16(tiny_llama: Any) -> None:
    assert working_copy(tiny_llama).dtype == torch.float32
