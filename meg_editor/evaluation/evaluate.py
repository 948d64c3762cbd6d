"""Measure an edited model on evaluation cases, every method under the same prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from meg_editor.data.cases import EvaluationCase
from meg_editor.evaluation.asked import reader_of
from meg_editor.evaluation.metrics import (
    METRICS,
    GateMatrix,
    Pair,
    Scores,
    exact,
    intervals,
    matches,
    normalise,
    percent,
    token_accuracy,
    worst_case,
)
from meg_editor.evaluation.questions import MAX_NEW_TOKENS, Question, questions_of
from meg_editor.evaluation.result import Answers, Evaluation
from meg_editor.lm.answers import batched_answers, decoded, end_tokens, greedy_tokens
from meg_editor.lm.devices import input_device
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import (
    Batch,
    Example,
    by_length,
    encode_example,
    max_target_length,
    target_logits,
)
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.runtime.progress import progress_bar
from meg_editor.runtime.tensors import chunks

_FORCED = 4096  # tokens whose logits are held at once
_ROWS = 256


def evaluate(
    model: CausalLM,
    tokenizer: Tokenizer,
    cases: Sequence[EvaluationCase],
    *,
    questions: Sequence[Question] | None = None,
    oracle: torch.Tensor | None = None,
    sampling_steps: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    reader: PromptReader | None = None,
) -> Evaluation:
    """Metrics of `model`, edited by any method or unedited, on all questions of `cases`.

    Both settings overlook a full stop at the end: generated answers are compared after
    `normalise`, the last of the forced tokens may lack the target's or have one that it lacks.

    Args:
        cases: case i must belong to edit i of a MeGModel.
        questions: of `questions_of(base, tokenizer, cases, ...)`, to compute them once for many
            methods; they are the same under the same prompt template.
        oracle: (N, P) collected neurons, to measure the ceiling of Generality.
        sampling_steps: of the generator; None: those it was fitted for.
        max_new_tokens: of an answer; more if some target is longer.
        reader: has the prompt template; that of a RoutedModel is its own. None: bare prompts.

    Raises:
        ValueError: no question.

    Example:
        >>> from meg_editor import EditRequest, MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> edit = EditRequest("The capital of France is", "Lima", "France")
        >>> print(evaluate(model, tok, [EvaluationCase(edit, paraphrases=("France, capital:",))]))
        Evaluation(Rel 0.0/50.0, Gen 0.0/50.0, Loc nan/nan, Score nan; AG/TF, percent)
    """
    edited = model if isinstance(model, MeGModel) else None
    routed = model if isinstance(model, RoutedModel) else None
    reader = reader_of(model, reader or PromptReader(tokenizer))
    if questions is None:
        base = routed.base if routed else model
        questions = questions_of(base, tokenizer, cases, reader, max_new_tokens)
    if not questions:
        raise ValueError("evaluate: expected cases to ask about, got no question")
    length = max_target_length(tokenizer, [case.request for case in cases], max_new_tokens)
    longest = max([length, *(_length(tokenizer, q) for q in questions if _follows(q))])
    wrapped = [reader.wrap(question.prompt) for question in questions]
    answers = Answers([""] * len(questions), [0.0] * len(questions), [0.0] * len(questions))
    matrix, seconds = [0, 0, 0, 0, 0], 0.0
    scores = [0.0] * len(questions)
    for rows in progress_bar(_batches(questions, wrapped), "evaluation", "batch"):
        chunk, prompts = [questions[row] for row in rows], [wrapped[row] for row in rows]
        start = time.perf_counter()
        decision = None
        if edited:
            routing = edited.route(prompts)
            decision = edited.neurons(routing, sampling_steps)
            for row, score in zip(rows, routing.score.tolist(), strict=True):
                scores[row] = score
            _count(matrix, chunk, routing.is_edit.tolist(), routing.nearest.tolist())
        elif routed:
            decision = routed.decide(prompts)
        seconds += time.perf_counter() - start
        attach = partial(_attached, routed, decision)
        limit = longest if _follows(chunk[0]) else length
        _answer(model, tokenizer, prompts, chunk, rows, answers, limit, attach)
    evaluation = _summarise(questions, answers)
    evaluation.milliseconds_per_query = 1000 * seconds / len(questions)
    if edited:
        evaluation.gate, evaluation.gate_scores = GateMatrix(*matrix), scores
        if oracle is not None:
            evaluation.oracle_generality = _oracle(edited, tokenizer, questions, oracle, length)
    return evaluation


def _batches(questions: Sequence[Question], prompts: Sequence[str]) -> list[list[int]]:
    """Rows of questions that are asked at once.

    Those that the unedited model answered stay in its batches: in half precision an answer may
    depend on the padding. What follows from an edit has answers of another length.
    """
    kinds: dict[tuple[bool, bool], list[int]] = {(False, False): [], (False, True): []}
    for row, question in enumerate(questions):
        kinds.setdefault((bool(question.tokens), _follows(question)), []).append(row)
    batches = []
    for rows in kinds.values():
        by_size = by_length([len(prompts[row]) for row in rows], _ROWS)
        batches += [[rows[index] for index in batch] for batch in by_size]
    return batches


def _follows(question: Question) -> bool:
    return question.family == "portability"


def _length(tokenizer: Tokenizer, question: Question) -> int:
    """Tokens of the longest answer that counts as right."""
    answers = question.answers or (question.target,)
    return max(len(encode_example(tokenizer, question.prompt, text).target) for text in answers)


def _attached(
    routed: RoutedModel | None, decision: Any, rows: Sequence[int] | None = None
) -> AbstractContextManager[None]:
    """The decision for all prompts of a chunk, or for those in `rows`, in effect."""
    if routed is None:
        return nullcontext()
    return routed.applied(decision if rows is None else routed.select_rows(decision, rows))


def _answer(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    chunk: Sequence[Question],
    rows: Sequence[int],
    answers: Answers,
    max_new_tokens: int,
    attach: Callable[..., AbstractContextManager[None]],
) -> None:
    with attach():
        generated = greedy_tokens(model, tokenizer, prompts, max_new_tokens)
    examples = [
        _example(tokenizer, prompt, question)
        for prompt, question in zip(prompts, chunk, strict=True)
    ]
    targets = [example.target for example in examples]
    # Greedy tokens that agree with the target up to its last one are those under teacher forcing.
    forced = [row[: len(target)] for row, target in zip(generated, targets, strict=True)]
    differing = [
        row
        for row, (tokens, target) in enumerate(zip(forced, targets, strict=True))
        if tokens[:-1] != target[:-1] or len(tokens) < len(target)
    ]
    longest = max((len(targets[row]) for row in differing), default=1)
    for chosen in chunks(len(differing), max(1, _FORCED // longest)):
        part = [differing[place] for place in chosen]
        with attach(part):
            predicted = _forced(model, [examples[row] for row in part])
        for row, tokens in zip(part, predicted, strict=True):
            forced[row] = tokens
    texts = decoded(tokenizer, generated)
    right = exact(texts, [question.target for question in chunk])
    ends = end_tokens(model, tokenizer)
    alike = [_but_full_stop(tokenizer, ends, *pair) for pair in zip(forced, targets, strict=True)]
    accuracy = token_accuracy(alike, targets)
    for row, text, match, share in zip(rows, texts, right, accuracy, strict=True):
        answers.texts[row], answers.right[row], answers.token_accuracy[row] = text, match, share


def _example(tokenizer: Tokenizer, prompt: str, question: Question) -> Example:
    """Tokens for teacher forcing, up to the full stop or the end of text, whichever comes first."""
    example = encode_example(tokenizer, prompt, question.target)
    target = list(question.tokens) or example.target
    if target[-1] == tokenizer.eos_token_id and tokenizer.decode(target[-2:-1]).endswith("."):
        target = target[:-1]
    return Example(example.prompt, target)


def forced_logits(
    model: CausalLM, examples: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`target_logits` of `model`, edited by any method; of a RoutedModel within `applied`."""
    # Within `applied` the base itself answers as decided; retrieval has a decoder of its own.
    scored: Any = model
    if not hasattr(type(model), "get_decoder"):
        scored = scored.base
    return target_logits(scored, Batch.of(examples, input_device(model)))


@torch.no_grad()
def _forced(model: CausalLM, examples: Sequence[Example]) -> list[list[int]]:
    """The most likely token at each target position under teacher forcing."""
    logits, _, rows = forced_logits(model, examples)
    best: list[list[int]] = [[] for _ in examples]
    for row, token in zip(rows.tolist(), logits.argmax(-1).tolist(), strict=True):
        best[row].append(token)
    return best


def _but_full_stop(
    tokenizer: Tokenizer, ends: Collection[int], predicted: list[int], target: list[int]
) -> list[int]:
    """`predicted` with the last token of `target` if the two differ in a full stop alone."""
    pair = (predicted[-1], target[-1])
    ours, theirs = ("" if token in ends else tokenizer.decode([token]).strip() for token in pair)
    said = all(token in ends or text for token, text in zip(pair, (ours, theirs), strict=True))
    alike = said and ours != theirs and normalise(ours) == normalise(theirs)
    return [*predicted[:-1], target[-1]] if alike else predicted


def _count(
    matrix: list[int], chunk: Sequence[Question], is_edit: list[bool], nearest: list[int]
) -> None:
    for question, yes, index in zip(chunk, is_edit, nearest, strict=True):
        if question.family not in METRICS:
            continue  # neither the edit itself nor something else
        about_edit = question.family != "locality"
        matrix[(0 if yes else 3) if about_edit else (1 if yes else 2)] += 1
        matrix[4] += about_edit and yes and index != question.edit


def _summarise(questions: Sequence[Question], answers: Answers) -> Evaluation:
    kinds = sorted({question.kind for question in questions})
    of: dict[str, list[int]] = {metric: [] for metric in METRICS}
    for row, question in enumerate(questions):
        for name in {question.family, question.kind}:
            of.setdefault(name, []).append(row)

    def pair(kind: str) -> Pair:
        right = [answers.right[row] for row in of[kind]]
        return Pair(percent(right), percent([answers.token_accuracy[row] for row in of[kind]]))

    def after(kind: str) -> str:
        return kind.partition(":")[2]

    def accepted(row: int) -> float:
        return matches(answers.texts[row], questions[row].answers)

    retained = {}
    for kind in kinds:
        true = [row for row in of[kind] if matches(questions[row].target, questions[row].answers)]
        if kind.startswith("locality:") and true:
            retained[after(kind)] = percent([accepted(row) for row in true])

    def accepted_by_kind(family: str) -> dict[str, float]:
        return {
            after(kind): percent([accepted(row) for row in of[kind]])
            for kind in kinds
            if kind.startswith(f"{family}:")
        }

    edits = [question.edit for question in questions]
    per_metric = {
        f"{metric}.{name}": [(edits[row], values[row]) for row in of[metric]]
        for metric in METRICS
        for name, values in (("ag", answers.right), ("tf", answers.token_accuracy))
    }
    return Evaluation(
        Scores(*(pair(metric) for metric in METRICS)),
        intervals(per_metric),
        worst_case([(edits[row], answers.right[row]) for row in of["generality"]]),
        {after(kind): pair(kind) for kind in kinds if kind.startswith("locality:")},
        retained,
        accepted_by_kind("portability"),
        accepted_by_kind("trap"),
        answers,
    )


def _oracle(
    edited: MeGModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    neurons: torch.Tensor,
    max_new_tokens: int,
) -> float:
    paraphrases = [question for question in questions if question.kind == "generality"]
    stored = neurons[[question.edit for question in paraphrases]].to(input_device(edited.base))
    prompts = [edited.reader.wrap(question.prompt) for question in paraphrases]
    texts = batched_answers(
        edited.base, tokenizer, prompts, max_new_tokens, lambda rows: edited.applied(stored[rows])
    )
    return percent(exact(texts, [question.target for question in paraphrases]))
