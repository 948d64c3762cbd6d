"""Long answers, fluency, multi-hop and conflicting edits against values worked out otherwise."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PROMPTS

from meg_editor.benchmark import diagnostics
from meg_editor.benchmark.diagnostics import score_histogram
from meg_editor.data.cases import EvaluationCase, MultiHopCase, Probe
from meg_editor.data.trap_questions import counter_asked, negated
from meg_editor.evaluation import Question
from meg_editor.evaluation.edit_conflicts import near_duplicates
from meg_editor.evaluation.fluency import ngram_entropy, perplexity
from meg_editor.evaluation.long_answers import embedding_similarity, rouge_l, token_recall
from meg_editor.evaluation.multi_hop import multi_hop_scores
from meg_editor.lm.tokens import encode_example
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """By trying every subsequence of `one`."""
    for size in range(len(one), 0, -1):
        for chosen in itertools.combinations(one, size):
            rest = iter(other)
            if all(word in rest for word in chosen):
                return size
    return 0


def test_rouge_l_is_that_of_the_longest_common_subsequence() -> None:
    rng = random.Random(0)
    for _ in range(60):
        one = [rng.choice("abcd") for _ in range(rng.randrange(1, 8))]
        other = [rng.choice("abcde") for _ in range(rng.randrange(1, 8))]
        expected = 2 * longest_common(one, other) / (len(one) + len(other))
        assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(expected)
    # Lin (2004): "police killed the gunman" against "the gunman kill police" has L = 2.
    assert rouge_l("The gunman kill police!", "police killed the gunman") == pytest.approx(0.5)
    assert rouge_l("", "a") == 0 and rouge_l("", "") == 1


def test_token_recall_counts_repeated_reference_words() -> None:
    assert token_recall("The cat. A cat!", "cat cat dog") == pytest.approx(2 / 3)
    assert token_recall("cat cat cat", "Cat") == 1 and token_recall("", "cat") == 0
    assert token_recall("anything", "") == 1


def test_ngram_entropy_of_texts_with_known_ones() -> None:
    # 8 different bigrams and 7 different trigrams: log2 8 and log2 7.
    distinct = "a b c d e f g h i"
    expected = (2 / 3 * math.log2(8) + 4 / 3 * math.log2(7)) / 2
    assert ngram_entropy(distinct) == pytest.approx(expected)
    assert ngram_entropy("so " * 50) == 0 == ngram_entropy("")


def test_perplexity_is_that_of_each_text_alone(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    texts = ["The capital of Erewhon is small.", "Once", "2 + 2 = 4"]
    losses = []
    for text in texts:
        ids = tiny_tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = F.log_softmax(tiny_llama(input_ids=ids).logits[0, :-1], -1)
        losses += (-scores.gather(1, ids[0, 1:, None])).flatten().tolist()
    expected = math.exp(sum(losses) / len(losses))
    for rows in (1, 3):
        result = perplexity(tiny_llama, tiny_tokenizer, texts, rows)
        assert result == pytest.approx(expected, rel=1e-4)
    assert math.isnan(perplexity(tiny_llama, tiny_tokenizer, []))


def test_the_perplexity_of_a_destroyed_model_is_infinite(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """It was an OverflowError, which ended the benchmark of all methods."""
    destroyed = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        destroyed.lm_head.weight *= 1e4
    assert perplexity(destroyed, tiny_tokenizer, PROMPTS) == math.inf
    with torch.no_grad():
        destroyed.lm_head.weight *= math.nan
    assert math.isnan(perplexity(destroyed, tiny_tokenizer, PROMPTS))


def test_perplexity_of_a_model_which_routes_is_that_of_its_queries(make_meg_model: Any) -> None:
    """A text with its answer is no query: an edit would be decided by the answer."""
    edited = make_meg_model()
    query, text = PROMPTS[0], f"{PROMPTS[0]} something else entirely"
    ids = edited.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad(), edited.routed([query]):
        scores = F.log_softmax(edited(input_ids=ids).logits[0, :-1].float(), -1)
    losses = (-scores.gather(1, ids[0, 1:, None])).flatten()
    result = perplexity(edited, edited.tokenizer, [text], queries=[query])
    assert result == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert result != pytest.approx(perplexity(edited.base, edited.tokenizer, [text]), rel=1e-4)


def test_multi_hop_wants_all_hops_and_any_question() -> None:
    known = {"A is": "b", "Who is A?": "b", "Where is b?": "sea", "q1": "no", "q2": "The Sea."}
    prompts: list[str] = []

    def answer(questions: Sequence[str]) -> list[str]:
        prompts.extend(questions)
        return [known.get(question, "?") for question in questions]

    good = MultiHopCase(
        ("A is",), ("q1", "q2"), ("sea", "The Sea"),
        (Probe("Who is A?", ("b",)), Probe("Where is b?", ("ocean", "sea"))),
    )  # fmt: skip
    bad = MultiHopCase(
        ("A is", "C is"), ("q1",), ("sea",),
        (Probe("Who is A?", ("b",)), Probe("Who is C?", ("d",))),
    )  # fmt: skip
    result = multi_hop_scores(answer, [good, bad], {"A is": "b", "C is": "d"})
    assert (result.edit_wise, result.instance_wise, result.multi_hop) == (50, 50, 50)
    assert len(prompts) == len(set(prompts)) == 7


def test_answers_of_several_hops_may_be_as_long_as_the_right_ones(
    tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at twelve tokens, a longer one could never be right."""
    limits: list[int] = []

    def answers(_: Any, __: Any, prompts: Sequence[str], limit: int, *___: Any) -> list[str]:
        limits.append(limit)
        return [name] * len(prompts)

    name = "a long name of " + "very " * 20 + "many words"
    monkeypatch.setattr(diagnostics, "batched_answers", answers)
    case = EvaluationCase(EditRequest("A is", "b"))
    chain = MultiHopCase(("A is",), ("q",), (name,), (Probe("Who is A?", ("b",)),))
    reader = PromptReader(tiny_tokenizer)
    scores = diagnostics._multi_hop(tiny_llama, tiny_tokenizer, [case], [chain], reader)
    assert scores["multi_hop"] == 100
    assert limits == [len(encode_example(tiny_tokenizer, "", name).target)] and limits[0] > 12


def test_near_duplicates_tell_contradictions() -> None:
    edits = [
        EditRequest("A is", "x", "A"),
        EditRequest("A's value is", "X", "a"),
        EditRequest("The value of A:", "x.", "A"),
        EditRequest("B is", "y", "B"),  # as close as the first two, but of another subject
        EditRequest("C is", "z"),
    ]
    angles = torch.tensor([0.0, 0.1, 0.5, 0.05, 2.0])
    anchors = torch.stack([angles.cos(), angles.sin()], 1)
    result = near_duplicates(edits, anchors, min_cosine=0.85)
    assert [(d.first, d.second, d.contradictory) for d in result] == [
        (0, 1, True),
        (1, 2, True),
        (0, 2, False),
    ]
    assert [d.cosine for d in result] == pytest.approx(
        [math.cos(0.1), math.cos(0.4), math.cos(0.5)]
    )


def test_negated_prompts_deny_what_they_ask() -> None:
    assert negated("The capital of France is") == "The capital of France is not"
    assert negated("Where was Ada Lovelace born?", "Ada Lovelace") == (
        "Where was Ada Lovelace not born?"
    )
    assert negated("Which city is the capital of France?", "France") == (
        "Which city is not the capital of France?"
    )
    assert negated("Miles Davis, playing the") == "It is not the case that Miles Davis, playing the"
    assert negated("Who wrote War and Peace?") is None


def test_counter_question_prompts_give_the_answer_and_ask_for_the_subject() -> None:
    assert counter_asked("The capital of France is", "France", "Lima") == (
        "The capital of which one is Lima?"
    )
    assert counter_asked("Where was Ada born?", "Ada", "Rome") == (
        "Where was which one born, if the answer is Rome?"
    )
    assert counter_asked("Where was she born?", "Ada", "Rome") is None
    assert counter_asked("Where was Ada born?", None, "Rome") is None


def test_embedding_similarity_is_the_mean_cosine() -> None:
    vectors = {"a": [1.0, 0.0], "b": [0.6, 0.8], "c": [0.0, 1.0]}

    def encode(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([vectors[text] for text in texts])

    assert embedding_similarity(["a", "b"], ["a", "c"], encode) == pytest.approx((1 + 0.8) / 2)


def test_a_histogram_counts_every_score_once() -> None:
    kinds = ["reliability"] * 2 + ["generality"] * 3 + ["locality:near"] * 4 + ["trap:negated"]
    questions = [Question("q", "a", kind, 0) for kind in kinds]
    scores = [0.9, 1.0, 0.8, 0.7, 0.9, 0.1, 0.2, 0.3, 0.0, 5.0]
    result = score_histogram(questions, scores)
    assert [sum(result[name]) for name in ("reliability", "generality", "locality")] == [2, 3, 4]
    assert result["edges"][0] == 0.0 and result["edges"][-1] == 1.0  # traps do not count
    assert len(result["edges"]) == len(result["locality"]) + 1
    assert result["locality"][0] == 1 and result["reliability"][-1] == 1
