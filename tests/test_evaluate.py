"""Answers and token accuracies are those of each question evaluated alone, in any batch."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS

from meg_editor import MeGHyperParams, load_model
from meg_editor.data.cases import EvaluationCase, Probe
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation import Evaluation, Question, evaluate, questions_of
from meg_editor.evaluation.forced import forced_scores
from meg_editor.evaluation.metrics import Pair
from meg_editor.lm.answers import batched_answers, greedy_answers, greedy_tokens
from meg_editor.lm.tokens import encode_example, max_target_length
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest


def share_of_right_tokens(model: Any, tokenizer: Any, question: Question) -> float:
    """Teacher forcing by the whole model's logits, one question at a time, without full stops."""
    example = encode_example(tokenizer, question.prompt, question.target)
    target = list(question.tokens or example.target)
    ids = torch.tensor([example.prompt + target])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
    right = (logits.argmax(-1) == torch.tensor(target)).float()
    return float(right.mean())


def assert_each_alone(
    result: Evaluation,
    questions: list[Question],
    ask: Callable[[Question], tuple[str, float]],
) -> None:
    answers = zip(result.answers.texts, result.answers.token_accuracy, strict=True)
    for question, (text, share) in zip(questions, answers, strict=True):
        alone, accuracy = ask(question)
        assert text == alone and share == pytest.approx(accuracy)


def test_no_question_is_refused(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="expected cases to ask about"):
        evaluate(tiny_llama, tiny_tokenizer, [])


def test_a_question_the_unedited_model_is_silent_on_is_asked(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """It was left out of Locality: a method that begins to speak there was never found out."""
    reader = PromptReader(tiny_tokenizer)
    prompts = [f"{prompt} {other}" for prompt in PROMPTS for other in OTHERS]
    said = batched_answers(tiny_llama, tiny_tokenizer, prompts, 12)
    silent = [prompt for prompt, text in zip(prompts, said, strict=True) if not text]
    assert silent
    probes = tuple(Probe(prompt, ("42",)) for prompt in silent)
    edit = EditRequest("The capital of Atlantis is", "Lima", "Atlantis")
    case = EvaluationCase(edit, locality={"neighbour": probes, "bare": (Probe(silent[0]),)})
    questions = questions_of(tiny_llama, tiny_tokenizer, [case], reader)
    local = [question for question in questions if question.family == "locality"]
    assert [q.target for q in local] == [""] * (len(silent) + 1)
    before = evaluate(tiny_llama, tiny_tokenizer, [case], questions=questions)
    assert before.scores.locality == Pair(100, 100)
    # The data set knows their answers, and for "bare" nobody does.
    known = forced_scores(tiny_llama, tiny_tokenizer, [case], questions[:-1]).token_accuracy
    assert forced_scores(tiny_llama, tiny_tokenizer, [case], questions).token_accuracy == known
    assert "specificity" in known
    speaks = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        speaks.lm_head.weight[tiny_tokenizer.eos_token_id] *= -1
    after = evaluate(speaks, tiny_tokenizer, [case], questions=questions)
    assert after.scores.locality == Pair(0, 0)


def test_an_unedited_model_has_all_of_its_locality_in_bfloat16(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """Its answers were compared with those of other batches, whose padding was another."""
    model = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    cases = [
        EvaluationCase(
            EditRequest(prompt, "Lima"),
            paraphrases=(f"Tell me please, and be quick about it: {prompt}",),
            locality={"neighbour": tuple(Probe(f"{prompt} {other}") for other in OTHERS)},
        )
        for prompt in PROMPTS
    ]
    assert evaluate(model, tiny_tokenizer, cases).scores.locality == Pair(100, 100)


def test_only_an_end_of_text_stands_for_a_missing_full_stop(tiny_tokenizer: Any) -> None:
    """A line break, a blank and any special token did too."""
    but_full_stop, tokenizer = evaluate.__globals__["_but_full_stop"], tiny_tokenizer
    lima, dot, line, blank = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" Lima", ".", "\n", " ")
    )
    end = tokenizer.eos_token_id
    for last, alike in ((line, False), (blank, False), ([tokenizer.bos_token_id], False)):
        assert (but_full_stop(tokenizer, {end}, lima + last, lima + dot) == lima + dot) is alike
    assert but_full_stop(tokenizer, {end}, [*lima, end], lima + dot) == lima + dot
    assert but_full_stop(tokenizer, {end}, lima + dot, [*lima, end]) == [*lima, end]


def test_only_what_is_not_said_of_itself_is_forced(monkeypatch: Any) -> None:
    """On the reference model, which says the locality answers and none of the targets."""
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    cases = edit_cases(load_world(), 12, seed=3)
    questions = questions_of(model, tokenizer, cases, PromptReader(tokenizer))
    forced: list[int] = []
    real = evaluate.__globals__["_forced"]

    def count(model: Any, examples: Any) -> Any:
        forced.append(len(examples))
        return real(model, examples)

    monkeypatch.setitem(evaluate.__globals__, "_forced", count)
    result = evaluate(model, tokenizer, cases, questions=questions)

    def alone(question: Question) -> tuple[str, float]:
        (text,) = greedy_answers(model, tokenizer, [question.prompt], 12)
        return text, share_of_right_tokens(model, tokenizer, question)

    assert_each_alone(result, questions, alone)
    about_edits = [q for q in questions if not q.kind.startswith("locality")]
    assert len(about_edits) <= sum(forced) < len(about_edits) + 3


def test_rows_which_are_forced_keep_their_neurons(
    make_meg_model: Callable[..., MeGModel], tiny_tokenizer: Any
) -> None:
    """Edited and other queries share a batch; those with another answer are forced together."""
    edited = make_meg_model()
    edits = list(edited.edits)
    spoken = greedy_answers(edited, tiny_tokenizer, OTHERS, 3)
    pairs = [*zip(OTHERS, spoken, strict=True), *((prompt, "wrote") for prompt in PROMPTS[:6])]
    questions = [Question(prompt, target, "reliability", 0) for prompt, target in pairs]
    length = max_target_length(tiny_tokenizer, edits, 3)
    cases = [EvaluationCase(edit) for edit in edits]
    result = evaluate(edited, tiny_tokenizer, cases, questions=questions, max_new_tokens=3)

    def alone(question: Question) -> tuple[str, float]:
        with edited.routed([question.prompt]):
            (text,) = greedy_answers(edited, tiny_tokenizer, [question.prompt], length)
            return text, share_of_right_tokens(edited, tiny_tokenizer, question)

    assert_each_alone(result, questions, alone)
    assert len(set(result.answers.token_accuracy)) > 1


@pytest.mark.parametrize("said", [".", "</s>", "x"])
@pytest.mark.parametrize(
    ("target", "tokens", "stops"),
    [
        ("the river", None, True),
        ("the river.", None, True),
        ("the river", ["</s>"], True),  # as a model said it, up to the end of text
        ("the river.", [".", "</s>"], True),
        ("the river", [], False),  # cut off: what comes next was not said
    ],
)
def test_a_full_stop_at_the_end_is_overlooked(
    tiny_llama: Any,
    tiny_tokenizer: Any,
    target: str,
    tokens: list[str] | None,
    stops: bool,
    said: str,
) -> None:
    """Free answers overlook it, so forced ones must too."""
    model = copy.deepcopy(tiny_llama)
    example = encode_example(tiny_tokenizer, PROMPTS[0], "the river", end=False)
    ids = torch.tensor([[*example.prompt, *example.target]])
    (token,) = tiny_tokenizer(said, add_special_tokens=False)["input_ids"]
    with torch.no_grad():  # what the model would say after the answer
        state = model.get_decoder()(input_ids=ids).last_hidden_state[0, -1]
        model.lm_head.weight[token] = 10 * state / state.norm()
        likeliest = model(input_ids=ids).logits[0, len(example.prompt) - 1 :].argmax(-1)
    assert int(likeliest[-1]) == token
    right = (likeliest[:-1] == torch.tensor(example.target)).tolist()
    if stops:
        right.append(said != "x")
    ends = tiny_tokenizer.convert_tokens_to_ids(tokens or [])
    known = () if tokens is None else (*example.target, *ends)
    case = EvaluationCase(EditRequest(PROMPTS[0], "the river"))
    questions = [Question(PROMPTS[0], target, "reliability", 0, tokens=known)]
    result = evaluate(model, tiny_tokenizer, [case], questions=questions)
    assert result.answers.token_accuracy == [pytest.approx(sum(right) / len(right))]


def test_what_the_unedited_model_says_is_what_it_says_when_forced(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """Its very tokens are forced: as texts they might be split in another way, or end elsewhere."""
    cases = [
        EvaluationCase(EditRequest(prompt, "the river"), locality={"other": (Probe(other),)})
        for prompt, other in zip(PROMPTS, OTHERS, strict=False)
    ]
    questions = questions_of(tiny_llama, tiny_tokenizer, cases, PromptReader(tiny_tokenizer), 7)
    local = [q for q in questions if q.kind == "locality:other"]
    retold = [
        encode_example(tiny_tokenizer, q.prompt, q.target).target == list(q.tokens) for q in local
    ]
    assert len(local) == len(OTHERS) and not all(retold)
    scores = evaluate(tiny_llama, tiny_tokenizer, cases, max_new_tokens=7).scores
    assert scores.locality == Pair(100.0, 100.0)


def test_a_plan_is_select_rows_to_some_of_its_queries() -> None:
    assert RoutedModel.select_rows(None, [0, 2]) is None
    assert RoutedModel.select_rows(["a", "b", "c"], [2, 0]) == ["c", "a"]
    assert RoutedModel.select_rows(torch.tensor([[1], [2], [3]]), [2]).tolist() == [[3]]


def test_greedy_answers_are_the_likeliest_tokens_whatever_the_model_is_set_to(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """Qwen's generation_config punishes repetition: then an answer is no longer greedy."""
    model = copy.deepcopy(tiny_llama)
    model.generation_config.repetition_penalty = 5.0
    plain = greedy_tokens(tiny_llama, tiny_tokenizer, PROMPTS[:3], 8)
    assert greedy_tokens(model, tiny_tokenizer, PROMPTS[:3], 8) == plain
    for prompt, tokens in zip(PROMPTS, plain, strict=False):
        ids = list(tiny_tokenizer(prompt)["input_ids"])
        for token in tokens:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            assert int(logits.argmax()) == token
            ids.append(token)


def test_no_questions_give_no_answers(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    assert batched_answers(tiny_llama, tiny_tokenizer, [], 3) == []
    assert len(batched_answers(tiny_llama, tiny_tokenizer, OTHERS, 3, rows=2)) == len(OTHERS)


def test_tokens_end_with_the_end_of_text(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    model = copy.deepcopy(tiny_llama)
    end = tiny_tokenizer.eos_token_id
    ids = torch.tensor([tiny_tokenizer(PROMPTS[0])["input_ids"]])
    with torch.no_grad():  # the end comes where the last state is this prompt's
        state = model.get_decoder()(input_ids=ids).last_hidden_state[0, -1]
        model.lm_head.weight[end] = 10 * state / state.norm()
    first, second = greedy_tokens(model, tiny_tokenizer, [PROMPTS[0], PROMPTS[9]], 5)
    assert first == [end]
    assert end not in second[:-1]


def test_long_answers_are_forced_some_at_a_time(
    make_meg_model: Callable[..., MeGModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_meg_model("bank")
    prompts = PROMPTS[: len(model.edits)]
    said = ["".join(filter(str.isalpha, text)) for text in model.answer(prompts, 8)]
    cases = [
        EvaluationCase(EditRequest(prompt, f"{text} x"), paraphrases=(prompt,))
        for prompt, text in zip(prompts, said, strict=True)
    ]
    whole = evaluate(model, model.tokenizer, cases)
    module = sys.modules["meg_editor.evaluation.evaluate"]  # the package has the function's name
    monkeypatch.setattr(module, "_FORCED", 7)
    parts = evaluate(model, model.tokenizer, cases)
    assert parts.answers == whole.answers and len(set(whole.answers.token_accuracy)) > 1


def test_what_follows_from_an_edit_may_be_long() -> None:
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    prompt = "The capital of France is"
    long = greedy_answers(model, tokenizer, [prompt], 1)[0] + " and the sea of the old country" * 3
    said = tokenizer(f" {long}", add_special_tokens=False)["input_ids"]
    probe = Probe(prompt, (long,))
    case = EvaluationCase(EditRequest("Who?", "Ada"), portability={"hop": (probe,)})
    limits: list[int] = []

    def generate(input_ids: Any, max_new_tokens: int, **_: Any) -> Any:
        limits.append(max_new_tokens)
        row = [*said, tokenizer.eos_token_id][:max_new_tokens]
        return torch.cat([input_ids, torch.tensor([row] * len(input_ids))], 1)

    model.generate = generate
    found = evaluate(model, tokenizer, [case])
    assert sorted(limits) == [12, len(said) + 1] and found.portability_by_kind == {"hop": 100.0}
