"""Edited facts in prompt forms: is each prompt routed and answered as its form expects?"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from meg_editor.data.cases import EvaluationCase
from meg_editor.data.preprocessing import key
from meg_editor.data.prompt_forms import PromptForm
from meg_editor.evaluation.metrics import mentions, percent
from meg_editor.lm.answers import batched_answers
from meg_editor.lm.chat import as_dialogue, in_chat
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import by_length, in_order

_ROWS = 256
FORM_TOKENS = 12  # of an answer that has to be the unedited model's


@dataclass(frozen=True)
class FormPrompt:
    """A fact in a form, and the right answer.

    Attributes:
        kind: of the form.
        edit: the index of the case.
        is_edit: whether the edit's answer is right, else the unedited model's.
        answer: the one which is right.

    Example:
        >>> FormPrompt("Tell me: who wrote Emma?", "prefix", 0, True, "James Joyce").is_edit
        True
    """

    prompt: str
    kind: str
    edit: int
    is_edit: bool
    answer: str


@dataclass(frozen=True)
class FormScores:
    """Right decisions and right answers: kind of form -> percent.

    Attributes:
        decisions: None where the model does not tell which queries it takes for edits.
    """

    decisions: dict[str, float] | None
    answers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The entries `forms` and `forms_answers` of a report."""
        return {"forms": self.decisions, "forms_answers": self.answers}


def sampled_facts(indices: Collection[int], seed: int = 0, count: int = 64) -> list[int]:
    """At most `count` of the facts, the same with the same seed: each is asked in every form.

    Example:
        >>> sampled_facts(range(3)), len(sampled_facts(range(1000)))
        ([0, 1, 2], 64)
    """
    return sorted(random.Random(seed).sample(sorted(indices), min(count, len(indices))))


def form_texts(case: EvaluationCase, edited: Collection[str] = ()) -> dict[str, str]:
    """The texts of a fact for the fields of forms; those which it lacks are left out.

    `p` and `q` are the prompt, whichever of a statement and a question it is, and `case.statement`
    or `case.question`; `s` is the subject, `other` one of the locality prompts which are questions,
    the same in every run, `a` the target and `b` the answer before the edit.

    Args:
        edited: keys (`preprocessing.key`) of prompts which `other` must not be.

    Example:
        >>> from meg_editor import EditRequest
        >>> case = EvaluationCase(EditRequest("The capital of France is", "Lima", "France"))
        >>> form_texts(case)
        {'p': 'The capital of France is', 's': 'France', 'a': 'Lima'}
    """
    edit = case.request
    is_question = edit.prompt.rstrip().endswith("?")
    others = [
        probe.prompt
        for probes in case.locality.values()
        for probe in probes
        if probe.prompt.rstrip().endswith("?") and key(probe.prompt) not in edited
    ]
    texts = {
        "p": case.statement if is_question else edit.prompt,
        "q": edit.prompt if is_question else case.question,
        "s": edit.subject,
        "other": random.Random(edit.prompt).choice(others) if others else None,
        "a": edit.target_new,
        "b": case.truth,
    }
    return {name: text for name, text in texts.items() if text}


def rendered(form: PromptForm, texts: Mapping[str, str], tokenizer: Tokenizer) -> str | None:
    """The prompt of a fact in a form; None where it lacks a text or the chat template a place.

    Chats are in the tokenizer's chat template, without the BOS, which it adds itself; for a
    tokenizer without one they are plain: "User: …", "Assistant: …", "System: …", a turn a line.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> form = PromptForm("chat", "chat", "edit", "", (("user", "{q!noq}"),))
        >>> rendered(form, {"q": "Who wrote Emma?"}, tokenizer)
        'User: Who wrote Emma\\nAssistant:'
        >>> rendered(form, {"s": "Emma"}, tokenizer) is None
        True
    """
    if not form.fields <= texts.keys():
        return None
    if not form.turns:
        return form.filled(texts)
    turns = form.filled_turns(texts)
    if turns is None:
        return None
    if not getattr(tokenizer, "chat_template", None):
        return as_dialogue(*turns, end=form.mode)
    try:
        return in_chat(tokenizer, *turns, end=form.mode)
    except (TemplateError, ValueError):  # such as Gemma's, which has no place for a system text
        return None


def form_prompts(
    base: CausalLM,
    tokenizer: Tokenizer,
    cases: Sequence[EvaluationCase],
    forms: Sequence[PromptForm],
    only: Collection[int] | None = None,
) -> list[FormPrompt]:
    """Every fact in every form it has the texts for; the same for every method.

    Args:
        base: the unedited model; its answers are the right ones to forms that expect no edit.
        only: indices of the cases to ask about, while all are edited; None: all.

    Example:
        >>> from meg_editor import EditRequest, MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> case = EvaluationCase(EditRequest("The capital of France is", "Lima", "France"))
        >>> forms = [PromptForm("plain", "plain", "edit", "{p}")]
        >>> form_prompts(model, tok, [case], forms)[0].answer
        'Lima'
    """
    edited = {key(text) for case in cases for text in (case.request.prompt, *case.paraphrases)}
    asked: list[FormPrompt] = []
    for index, case in enumerate(cases):
        if only is not None and index not in only:
            continue
        texts = form_texts(case, edited)
        for form in forms:
            if prompt := rendered(form, texts, tokenizer):
                is_edit = form.expect == "edit"
                answer = case.request.target_new if is_edit else ""
                asked.append(FormPrompt(prompt, form.kind, index, is_edit, answer))
    others = [row for row, one in enumerate(asked) if not one.is_edit]
    answers = batched_answers(base, tokenizer, [asked[row].prompt for row in others], FORM_TOKENS)
    for row, answer in zip(others, answers, strict=True):
        asked[row] = replace(asked[row], answer=answer)
    return asked


def evaluate_forms(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[FormPrompt]
) -> FormScores:
    """Right decisions and answers of `model` on `form_prompts`, in percent for each kind.

    A decision is right if the prompt is routed to its very edit, or to none where none is expected.
    It is known of models with a method `route`, which gives for B prompts B rows with `is_edit` and
    `edit`, the index of the case. The greedy answer is right if it has the target in it
    as whole words (`metrics.mentions`); where no edit is expected, if it is that of the unedited
    model, up to 12 tokens.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> asked = FormPrompt("The capital of France is", "plain", 0, True, "Paris")
        >>> evaluate_forms(model, tok, [asked])
        FormScores(decisions=None, answers={'plain': 100.0})
    """
    kinds = [one.kind for one in prompts]
    routed = _edits_of(model, [one.prompt for one in prompts])
    decisions = None
    if routed is not None:
        right = [
            float(edit == (one.edit if one.is_edit else None))
            for one, edit in zip(prompts, routed, strict=True)
        ]
        decisions = _by_kind(kinds, right)
    return FormScores(decisions, _by_kind(kinds, _right_answers(model, tokenizer, prompts)))


def _edits_of(model: Any, prompts: Sequence[str]) -> list[int | None] | None:
    """The edit each prompt is routed to; None where the model does not tell."""
    if not hasattr(model, "route"):
        return None

    def edits(rows: list[int]) -> list[int | None]:
        routing = model.route([prompts[row] for row in rows])
        return [query.edit if query.is_edit else None for query in routing]

    return in_order(by_length([len(prompt) for prompt in prompts], _ROWS), edits)


def _right_answers(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[FormPrompt]
) -> list[float]:
    right = [0.0] * len(prompts)
    for is_edit in (True, False):
        rows = [row for row, one in enumerate(prompts) if one.is_edit == is_edit]
        # In the batches in which the unedited model answered.
        chosen = [prompts[row] for row in rows]
        length = FORM_TOKENS
        if is_edit:
            targets = {one.answer for one in chosen}
            length = max([length, *(_tokens(tokenizer, target) for target in targets)])
        answers = batched_answers(model, tokenizer, [one.prompt for one in chosen], length)
        for row, one, answer in zip(rows, chosen, answers, strict=True):
            right[row] = mentions(answer, one.answer) if is_edit else float(answer == one.answer)
    return right


def _tokens(tokenizer: Tokenizer, target: str) -> int:
    """Of a target, with the end of text."""
    return len(tokenizer(target, add_special_tokens=False)["input_ids"]) + 1


def _by_kind(kinds: Sequence[str], right: Sequence[float]) -> dict[str, float]:
    return {
        kind: percent([value for one, value in zip(kinds, right, strict=True) if one == kind])
        for kind in dict.fromkeys(kinds)
    }
