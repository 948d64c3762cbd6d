"""Teacher-forced efficacy, generality and specificity, as lifelong editors report them.

NAS (arXiv 2602.02543), UltraEdit (2505.14679) and RLSEdit follow MEMIT's and EasyEdit's code: on
ZsRE the share of target tokens that are ranked first, on CounterFact whether the new answer is
likelier than the old one. The end of text is no part of a target here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from meg_editor.data.cases import EvaluationCase
from meg_editor.evaluation.asked import decided, reader_of
from meg_editor.evaluation.evaluate import forced_logits
from meg_editor.evaluation.metrics import matches, percent
from meg_editor.evaluation.questions import Question
from meg_editor.lm.answers import end_tokens
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Example, by_length, encode_example, means
from meg_editor.requests.prompts import PromptReader

_ROWS = 64
_METRICS = {"reliability": "efficacy", "generality": "generality", "locality": "specificity"}


@dataclass(frozen=True)
class ForcedScores:
    """In percent: "efficacy", "generality" and "specificity" of each, where it is asked.

    Attributes:
        token_accuracy: share of the target's tokens that are ranked first under teacher forcing,
            mean over tokens, then prompts, then facts. The target of Specificity is the data set's
            answer, or where it has none the unedited model's. Questions that the edit's target
            answers anyway (CounterFact's attribute prompts) are left out, and those which neither
            the data set nor the unedited model answers.
        success: facts whose new answer is likelier than the old one (mean log-probability per
            token), for Specificity whose old answer is likelier than the new one; on neighbours
            with the old answer. Empty where the data set has no old answers.
        compared: number of questions whose new and old answer are compared.
    """

    token_accuracy: dict[str, float]
    success: dict[str, float]
    compared: int


def forced_scores(
    model: CausalLM,
    tokenizer: Tokenizer,
    cases: Sequence[EvaluationCase],
    questions: Sequence[Question],
    reader: PromptReader | None = None,
) -> ForcedScores:
    """Teacher-forced metrics of `model`, edited by any method.

    Args:
        questions, reader: as for `evaluate`; portability and traps are left out.

    Example:
        >>> from meg_editor import EditRequest, MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> edit = EditRequest("The capital of France is", "Lima", "France")
        >>> asked = [Question(edit.prompt, edit.target_new, "reliability", 0)]
        >>> forced_scores(model, tok, [EvaluationCase(edit, truth="Paris")], asked)
        ForcedScores(token_accuracy={'efficacy': 0.0}, success={'efficacy': 0.0}, compared=1)
    """
    reader = reader or PromptReader(tokenizer)
    ends = end_tokens(model, tokenizer)
    asked = [
        question
        for question in questions
        if question.family in _METRICS
        and not _bleeds(question, cases[question.edit])
        and _target(question, ends)
    ]
    both = [q for q in asked if _has_old_answer(q, cases[q.edit])]
    prompts = [question.prompt for question in (*asked, *both, *both)]
    targets = [
        *(_target(q, ends) for q in asked),
        *(cases[q.edit].request.target_new for q in both),
        *(cases[q.edit].truth or "" for q in both),
    ]
    accuracy, log_prob = likelihoods(model, tokenizer, prompts, targets, reader)
    compared = log_prob[len(asked) :]
    new, old = compared[: len(both)], compared[len(both) :]
    success = [
        float(b > a if q.family == "locality" else a > b)
        for q, a, b in zip(both, new, old, strict=True)
    ]
    return ForcedScores(_means(asked, accuracy[: len(asked)]), _means(both, success), len(both))


@torch.no_grad()
def likelihoods(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    targets: Sequence[str | Sequence[int]],
    reader: PromptReader,
) -> tuple[list[float], list[float]]:
    """Of Q targets, without the end of text: share of tokens that are ranked first, and mean
    log-probability per token. A routing model decides by the prompt alone.

    Args:
        prompts: bare.
        targets: texts, or the tokens of one.
        reader: has the prompt template; that of a RoutedModel is its own.
    """
    reader = reader_of(model, reader)
    wrapped = [reader.wrap(prompt) for prompt in prompts]
    examples = [
        _example(tokenizer, text, target) for text, target in zip(wrapped, targets, strict=True)
    ]
    pairs = [(text, *example.target) for text, example in zip(wrapped, examples, strict=True)]
    row_of = {pair: row for row, pair in enumerate(pairs)}  # a pair that occurs again is run once
    rows = list(row_of.values())
    accuracy, log_prob = [0.0] * len(pairs), [0.0] * len(pairs)
    for indices in by_length([len(wrapped[row]) for row in rows], _ROWS):
        chunk = [rows[index] for index in indices]
        with decided(model, [wrapped[row] for row in chunk]):
            logits, tokens, places = forced_logits(model, [examples[row] for row in chunk])
        right = (logits.argmax(-1) == tokens).float()
        log_probs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        for values, result in ((right, accuracy), (log_probs, log_prob)):
            for row, value in zip(chunk, means(values, places, len(chunk)).tolist(), strict=True):
                result[row] = value
    return [accuracy[row_of[pair]] for pair in pairs], [log_prob[row_of[pair]] for pair in pairs]


def _example(tokenizer: Tokenizer, prompt: str, target: str | Sequence[int]) -> Example:
    if isinstance(target, str):
        return encode_example(tokenizer, prompt, target, end=False)
    return Example(prompt_tokens(tokenizer, [prompt])[0], [*target])


def _target(question: Question, ends: Collection[int]) -> str | list[int]:
    """Of an answer of the unedited model its own tokens: its text may be tokenised otherwise."""
    if question.family == "locality" and question.answers:
        return question.answers[0]
    return [token for token in question.tokens if token not in ends] or question.target


def _bleeds(question: Question, case: EvaluationCase) -> bool:
    """A model that says the target everywhere would be right there."""
    answers = question.answers if question.family == "locality" else ()
    return bool(matches(case.request.target_new, answers))


def _has_old_answer(question: Question, case: EvaluationCase) -> bool:
    """A neighbour counts only where the old answer is its own."""
    if not case.truth:
        return False
    return question.family != "locality" or bool(matches(case.truth, question.answers))


def _means(questions: Sequence[Question], values: Sequence[float]) -> dict[str, float]:
    """Metric -> mean over facts of the mean over their questions, in percent."""
    facts: dict[str, dict[int, list[float]]] = {}
    for question, value in zip(questions, values, strict=True):
        of_metric = facts.setdefault(_METRICS[question.family], {})
        of_metric.setdefault(question.edit, []).append(value)
    return {name: percent([*map(fmean, by_fact.values())]) for name, by_fact in facts.items()}
