"""Rivals which keep the weights and decide query by query: NeuralDB, HoReN, SCEN, retrieval."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import OTHERS, PROMPTS

from meg_editor import MeGHyperParams, load_model
from meg_editor.baselines.horen import (
    HoReNHyperParams,
    apply_horen_to_model,
    hopfield,
    mean_of_last,
)
from meg_editor.baselines.neuraldb import (
    KeyValueMemory,
    NeuralDBHyperParams,
    apply_neuraldb_to_model,
)
from meg_editor.baselines.retrieval import RetrievalHyperParams, apply_retrieval_to_model
from meg_editor.baselines.scen import SCENHyperParams, apply_scen_to_model, train_index
from meg_editor.config.settings import HParamsError
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation.cost import stored_bytes
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.tokens import Batch, encode_example, left_padded, target_logits
from meg_editor.lm.working_copy import shared_copy
from meg_editor.requests.request import EditRequest, RequestError

EDITS = [
    EditRequest(prompt, target, prompt.split()[-2])
    for prompt, target in zip(
        PROMPTS[:4], ("tea", "two rivers", "ore", "salt and tea"), strict=True
    )
]
QUERIES = [edit.prompt for edit in EDITS] + OTHERS[:2]
ONE_STATE = torch.Generator().manual_seed(3)


@pytest.fixture(autouse=True)
def _base_stays_as_it_was(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    before = fingerprint(tiny_llama)
    answers = greedy_answers(tiny_llama, tiny_tokenizer, QUERIES, 5)
    yield
    assert fingerprint(tiny_llama) == before
    assert greedy_answers(tiny_llama, tiny_tokenizer, QUERIES, 5) == answers


Reference = tuple[Any, Any, list[EditRequest]]


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    """The trained reference model, which can be edited, and eight facts."""
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    before = fingerprint(model)
    yield model, tokenizer, [case.request for case in edit_cases(load_world(), 8, seed=3)]
    assert fingerprint(model) == before


def answers(model: Any, tokenizer: Any, edits: list[EditRequest]) -> list[str]:
    return greedy_answers(model, tokenizer, [edit.prompt for edit in edits], 12)


# ------------------------------------------------------------------------------------ NeuralDB


def test_a_clone_shares_weights_and_no_modules(tiny_llama: Any) -> None:
    clone = shared_copy(tiny_llama)
    pairs = zip(tiny_llama.parameters(), clone.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert not set(map(id, tiny_llama.modules())) & set(map(id, clone.modules()))
    assert stored_bytes(clone, tiny_llama) == 0


def test_memory_adds_the_nearest_residual_if_it_is_near_enough() -> None:
    linear = torch.nn.Linear(3, 2, bias=False)
    keys = torch.tensor([[2.0, 0, 0], [0, 3.0, 0]])
    residuals = torch.tensor([[1.0, 10], [2.0, 20]])
    memory = KeyValueMemory(linear, keys, residuals, threshold=0.8)
    x = torch.tensor([[[5.0, 0.1, 0], [0.1, 0.2, 0.01]], [[1.0, 1.0, 0], [0, 0, 1.0]]])
    added = memory(x) - linear(x)
    expected = torch.tensor([[[1.0, 10], [2.0, 20]], [[0, 0], [0, 0]]])  # cos(45°) is too little
    torch.testing.assert_close(added, expected)


def test_neuraldb_says_the_targets(reference: Reference) -> None:
    model, tokenizer, edits = reference
    hparams = NeuralDBHyperParams(
        layers=[1], v_lr=2, clamp_norm_factor=50, fact_token="last", gate_threshold=0.9
    )
    edited, originals = apply_neuraldb_to_model(model, tokenizer, edits, hparams)
    assert originals == {} and answers(edited, tokenizer, edits) == [e.target_new for e in edits]
    memory = edited.model.layers[1].mlp.down_proj
    assert memory.keys.shape == (8, model.config.intermediate_size)
    stored = 4 * len(edits) * (model.config.intermediate_size + model.config.hidden_size)
    assert stored_bytes(edited, model) == stored


def test_neuraldb_leaves_tokens_alone_which_are_far_from_every_key(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    hparams = NeuralDBHyperParams(layers=[1], gate_threshold=0.9999, context_prefixes=2)
    edited, _ = apply_neuraldb_to_model(tiny_llama, tiny_tokenizer, EDITS, hparams)
    ids = torch.tensor([tiny_tokenizer(OTHERS[1])["input_ids"][1:]])
    with torch.no_grad():
        torch.testing.assert_close(edited(input_ids=ids).logits, tiny_llama(input_ids=ids).logits)


@pytest.mark.parametrize("kind", [NeuralDBHyperParams, HoReNHyperParams, SCENHyperParams])
def test_one_layer_is_required(kind: Any) -> None:
    with pytest.raises(HParamsError, match=r"layers: expected one layer such as .* got \[1, 2\]"):
        kind(layers=[1, 2])


# --------------------------------------------------------------------------------------- HoReN


def test_hopfield_against_a_plain_loop() -> None:
    queries = F.normalize(torch.randn(5, 4, generator=ONE_STATE), dim=-1)
    keys = F.normalize(torch.randn(7, 4, generator=ONE_STATE), dim=-1)
    result = hopfield(queries, keys, alpha=0.3, beta=9.0, steps=2)
    for query, got in zip(queries.tolist(), result, strict=True):
        q = query
        for _ in range(2):
            weights = [
                math.exp(9 * sum(a * b for a, b in zip(q, k, strict=True))) for k in keys.tolist()
            ]
            mixed = [
                sum(w * k[d] for w, k in zip(weights, keys.tolist(), strict=True)) for d in range(4)
            ]
            length = math.hypot(*mixed)
            q = [0.7 * a + 0.3 * m / length for a, m in zip(q, mixed, strict=True)]
            q = [a / math.hypot(*q) for a in q]
        torch.testing.assert_close(got, torch.tensor(q))
    assert torch.equal(hopfield(queries, keys, 0.3, 9.0, steps=0), queries)


def test_a_query_is_the_mean_of_the_last_tokens() -> None:
    states = torch.randn(2, 6, 3, generator=ONE_STATE)
    ends, lengths = torch.tensor([5, 3]), torch.tensor([5, 4])  # the first is padded on the left
    result = mean_of_last(states, ends, lengths, 0.5)
    torch.testing.assert_close(result[0], states[0, 3:6].mean(0))
    torch.testing.assert_close(result[1], states[1, 2:4].mean(0))


@pytest.fixture(scope="module")
def horen(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    hparams = HoReNHyperParams(layers=[1], edit_lr=0.3, hopfield_key_match_threshold=0.97)
    return apply_horen_to_model(tiny_llama, tiny_tokenizer, EDITS, hparams)[0]


def test_horen_says_the_targets(reference: Reference) -> None:
    model, tokenizer, edits = reference
    hparams = HoReNHyperParams(layers=[1])
    edited, originals = apply_horen_to_model(model, tokenizer, edits, hparams)
    assert originals == {} and answers(edited, tokenizer, edits) == [e.target_new for e in edits]


def test_horen_answers_alike_in_any_batch(horen: Any, tiny_tokenizer: Any) -> None:
    answers = greedy_answers(horen, tiny_tokenizer, QUERIES, 6)
    assert answers == [greedy_answers(horen, tiny_tokenizer, [q], 6)[0] for q in QUERIES]
    before = greedy_answers(horen.base, tiny_tokenizer, QUERIES, 6)
    changed = [after != old for after, old in zip(answers, before, strict=True)]
    assert changed == [True] * len(EDITS) + [False] * 2


def test_horen_adds_its_value_at_the_end_of_the_prompt_alone(
    horen: Any, tiny_tokenizer: Any
) -> None:
    edit, value = EDITS[1], horen.values[1]
    example = encode_example(tiny_tokenizer, edit.prompt, edit.target_new)

    def by_hand(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, len(example.prompt) - 1] += value
        return output

    batch = Batch.of([example, example], "cpu")
    handle = horen.base.model.layers[1].mlp.down_proj.register_forward_hook(by_hand)
    expected = target_logits(horen.base, batch)[0]
    handle.remove()
    with horen.applied(horen.decide([edit.prompt] * 2)):
        torch.testing.assert_close(target_logits(horen.base, batch)[0], expected)
    unedited = target_logits(horen.base, batch)[0]
    assert (expected - unedited).abs().max() > 0.1


def test_horen_counts_the_tokens_of_whole_prompts(horen: Any, tiny_tokenizer: Any) -> None:
    """Its value is added at the last one, whatever the question in the prompt is."""
    prompts = [
        "Once there was a queen.  \n  The capital of Erewhon is",
        "User: Hello!\nAssistant: Hi.\nUser: What is the capital of Erewhon?\nAssistant:",
    ]
    rows = [len(tiny_tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert horen.decide(prompts).tolist() == rows


def test_horen_reads_through_a_template(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    hparams = HoReNHyperParams(layers=[1], edit_lr=0.3, prompt_template="Q: {} A:")
    edited, _ = apply_horen_to_model(tiny_llama, tiny_tokenizer, EDITS[:2], hparams)
    wrapped = "Q: " + EDITS[0].prompt + " A:"
    assert edited.decide([EDITS[0].prompt]).tolist() == edited.decide([wrapped]).tolist()
    assert edited.decide([wrapped]).tolist() == [len(tiny_tokenizer(wrapped)["input_ids"])]


# ---------------------------------------------------------------------------------------- SCEN


def test_index_neurons_tell_their_own_state_from_others() -> None:
    mine = torch.randn(6, 12, generator=ONE_STATE)
    rest = torch.randn(40, 12, generator=ONE_STATE)
    weights, biases = train_index(mine, rest, SCENHyperParams(index_steps=400))
    own = (mine @ weights.T + biases).sigmoid()
    assert own.diagonal().min() > 0.9
    assert own.masked_fill(torch.eye(6).bool(), 0).max() < 0.5
    assert (rest @ weights.T + biases).sigmoid().max() < 0.5


def test_scen_accepts_paraphrases_of_a_single_edit(reference: Reference) -> None:
    """Its states have no deviation: divided by one of 1e-6, every other state was far away."""
    model, tokenizer, _ = reference
    case = edit_cases(load_world(), 64, 0)[0]
    hparams = SCENHyperParams(layers=[2], expert_steps=2, theta=0.7)
    edited, _ = apply_scen_to_model(model, tokenizer, [case.request], hparams)
    assert all(routed.is_edit for routed in edited.route(list(case.paraphrases)))


def test_scen_uses_the_expert_of_its_fact_or_none(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    pseudo = [EditRequest(text, "x") for text in [*OTHERS, *PROMPTS[8:]]]
    hparams = SCENHyperParams(layers=[1], index_steps=400, theta=0.6)
    edited, _ = apply_scen_to_model(tiny_llama, tiny_tokenizer, EDITS, hparams, pseudo=pseudo)
    plan = edited.decide(QUERIES)
    torch.testing.assert_close(plan[: len(EDITS)], edited.experts)
    assert not plan[len(EDITS) :].any()


def test_scen_says_the_targets(reference: Reference) -> None:
    model, tokenizer, edits = reference
    edited, originals = apply_scen_to_model(model, tokenizer, edits, SCENHyperParams(layers=[1]))
    assert originals == {} and answers(edited, tokenizer, edits) == [e.target_new for e in edits]


# ----------------------------------------------------------------------------------- retrieval


@pytest.fixture(scope="module")
def retrieval(tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: Any) -> Any:
    hparams = RetrievalHyperParams(threshold=0.9999, context_template="Know: {prompt} {target}. ")
    return apply_retrieval_to_model(
        tiny_llama, tiny_tokenizer, EDITS, hparams, encoder=tiny_encoder
    )[0]


def test_a_retrieved_fact_ends_as_the_model_ends_a_text(
    tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: Any
) -> None:
    hparams = RetrievalHyperParams(threshold=0.9999)
    edited, _ = apply_retrieval_to_model(
        tiny_llama, tiny_tokenizer, EDITS, hparams, encoder=tiny_encoder
    )
    text = edited.decide(QUERIES)[0]
    eos = tiny_tokenizer.eos_token
    assert text.count(eos) == 1 and f"{EDITS[0].target_new}{eos}" in text
    assert tiny_tokenizer.eos_token_id in tiny_tokenizer(text)["input_ids"]


def test_retrieved_facts_are_prepended_to_the_question(retrieval: Any, tiny_tokenizer: Any) -> None:
    facts = [f"Know: {edit.prompt} {edit.target_new}. " for edit in EDITS]
    assert retrieval.decide(QUERIES) == [*facts, "", ""]
    ids = [tiny_tokenizer(query)["input_ids"] for query in QUERIES]
    prefixes = [tiny_tokenizer(f, add_special_tokens=False)["input_ids"] for f in facts]
    answers = greedy_answers(retrieval, tiny_tokenizer, QUERIES, 6)
    for row, prefix, answer in zip(ids, [*prefixes, [], []], answers, strict=True):
        whole = torch.tensor([row[:1] + prefix + row[1:]])
        output = retrieval.base.generate(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            max_new_tokens=6,
            do_sample=False,
        )
        new = tiny_tokenizer.decode(output[0, whole.shape[1] :], skip_special_tokens=True)
        assert answer == new.strip()


def test_a_fact_stands_in_the_last_turn_of_a_chat(
    tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: Any
) -> None:
    """In front of the template it would be outside every turn; an end of text would end one."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"bos_token": marks[0], "eos_token": marks[1]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    hparams = RetrievalHyperParams(threshold=0.9, context_template="Know: {prompt} {target}{eos}. ")
    edited, _ = apply_retrieval_to_model(
        tiny_llama, tokenizer, EDITS, hparams, encoder=tiny_encoder
    )
    edit = EDITS[0]
    earlier = f"<|im_start|>user\n{edit.prompt}<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
    before, after = f"{earlier}<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    chat = f"{before}{edit.prompt}{after}"
    (fact,) = edited.decide([chat])
    assert fact == f"Know: {edit.prompt} {edit.target_new}. "
    ids = torch.tensor([tokenizer(chat, add_special_tokens=False)["input_ids"]])
    with edited.applied([fact]):
        inputs, places = edited._insert(ids, torch.ones_like(ids))
    assert tokenizer.decode(inputs["input_ids"][0]) == f"{before}{fact}{edit.prompt}{after}"
    assert inputs["input_ids"][0, places[0]].tolist() == ids[0].tolist()


def test_logits_are_those_of_the_prepended_prompt(retrieval: Any, tiny_tokenizer: Any) -> None:
    query, target = EDITS[3].prompt, "salt"
    row = tiny_tokenizer(f"{query} {target}")["input_ids"]
    prefix = tiny_tokenizer(retrieval.decide([query])[0], add_special_tokens=False)["input_ids"]
    reference = retrieval.base(input_ids=torch.tensor([row[:1] + prefix + row[1:]])).logits[0]
    reference = torch.cat([reference[:1], reference[1 + len(prefix) :]])
    batch = left_padded(tiny_tokenizer, [f"{query} {target}", "A long one " * 9], "cpu")
    with retrieval.routed([query, "A long one"]):
        logits = retrieval(**batch).logits[0, -len(row) :]
        torch.testing.assert_close(logits, reference, rtol=1e-4, atol=1e-4)
        cached = retrieval.base(input_ids=torch.tensor([row]), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="past_key_values: expected none"):
            retrieval(input_ids=torch.tensor([[5]]), past_key_values=cached)
    with retrieval.applied(retrieval.decide([query])):
        forced_ids = Batch.of([encode_example(tiny_tokenizer, query, target)], "cpu")
        start = len(tiny_tokenizer(query)["input_ids"])
        torch.testing.assert_close(
            target_logits(retrieval, forced_ids)[0][0], reference[start - 1], rtol=1e-4, atol=1e-4
        )


def test_every_returned_sequence_keeps_its_question(retrieval: Any, tiny_tokenizer: Any) -> None:
    batch = left_padded(tiny_tokenizer, QUERIES[3:5], "cpu")
    output = retrieval.generate(
        **batch, num_beams=2, num_return_sequences=2, max_new_tokens=3, do_sample=False
    )
    prompts = batch["input_ids"].repeat_interleave(2, dim=0)
    assert torch.equal(output[:, : prompts.shape[1]], prompts)


def test_what_to_tell_names_prompt_and_target() -> None:
    with pytest.raises(HParamsError, match="context_template: expected {prompt} and {target}"):
        RetrievalHyperParams(context_template="{prompt}")
    for wrong in ("{prompt} {target} {subject}", "{prompt} {target} {}", "{prompt} {target} {"):
        with pytest.raises(HParamsError, match="other braces doubled"):
            RetrievalHyperParams(context_template=wrong)
    assert RetrievalHyperParams(context_template="{{x}} {prompt} {target}{eos}")


@pytest.mark.parametrize(
    ("apply", "hparams"),
    [
        (apply_neuraldb_to_model, NeuralDBHyperParams(layers=[1])),
        (apply_horen_to_model, HoReNHyperParams(layers=[1])),
        (apply_scen_to_model, SCENHyperParams(layers=[1])),
        (apply_retrieval_to_model, RetrievalHyperParams()),
    ],
)
def test_contradictions_are_refused(
    apply: Any, hparams: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    rows = [EDITS[0], EditRequest(EDITS[0].prompt, "coal", EDITS[0].subject)]
    with pytest.raises(RequestError, match="different answers to the same prompt"):
        apply(tiny_llama, tiny_tokenizer, rows, hparams)
