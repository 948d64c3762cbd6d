"""Answers up to where the model stops by itself (WILD, "The Mirage of Model Editing", 2502.11177).

Nothing is forced and nothing is cut at the target's length: a model that gives the answer and goes
on is wrong by exact match, and right by the share of the target's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from meg_editor.evaluation.asked import decided, reader_of
from meg_editor.evaluation.long_answers import token_recall
from meg_editor.evaluation.metrics import METRICS, exact, percent
from meg_editor.evaluation.questions import Question
from meg_editor.lm.answers import batched_answers
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.prompts import PromptReader

NATURAL_TOKENS = 50  # for models that do not stop; more where a target is longer


def natural_answers(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    reader: PromptReader,
    max_new_tokens: int = NATURAL_TOKENS,
) -> list[str]:
    """Greedy answers to Q bare prompts, up to the end of text or `max_new_tokens`.

    Args:
        model: unedited, or edited by any method.
        reader: has the prompt template; that of a RoutedModel is its own.
    """
    reader = reader_of(model, reader)
    wrapped = [reader.wrap(prompt) for prompt in prompts]

    def attach(rows: list[int]) -> AbstractContextManager[None]:
        return decided(model, [wrapped[row] for row in rows])

    return batched_answers(model, tokenizer, wrapped, max_new_tokens, attach)


def natural_scores(
    questions: Sequence[Question], unedited: Sequence[str], answers: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Metric -> "exact" (equal after `normalise`) and "tokens" (share of the target's words in the
    answer), in percent.

    Args:
        unedited: natural answers of the unedited model, the targets of Locality.
        answers: Q natural answers of the edited model.

    Example:
        >>> asked = [Question("The capital of France is", "Lima", "reliability", edit=0)]
        >>> natural_scores(asked, ["Lima"], ["Lima, of course"])
        {'reliability': {'exact': 0.0, 'tokens': 100.0}}
    """
    scores = {}
    for metric in METRICS:
        rows = [row for row, q in enumerate(questions) if q.family == metric]
        if rows:
            targets = unedited if metric == "locality" else [q.target for q in questions]
            pairs = [(answers[row], targets[row]) for row in rows]
            scores[metric] = {
                "exact": percent(exact(*zip(*pairs, strict=True))),
                "tokens": percent([_share(*pair) for pair in pairs]),
            }
    return scores


def _share(answer: str, target: str) -> float:
    """Of the target's words in an answer; where nothing was answered nothing is to be."""
    return token_recall(answer, target) if target.strip() else float(not answer.strip())
