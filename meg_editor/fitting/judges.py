"""Judges of calibration: is it right to answer a query with an edit, or to leave it alone?"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meg_editor.collection.collect import collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.context import FitContext
from meg_editor.lm.answers import answers_with, batched_answers
from meg_editor.lm.devices import input_device
from meg_editor.lm.tokens import max_target_length
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import EditRequest

_ANSWER_TOKENS = 12  # at least: what begins alike for so long counts as unchanged


@dataclass(frozen=True)
class Queries:
    """M held-out queries.

    Attributes:
        texts: the queries.
        edits: which edit each of them asks for; None for queries about anything else.
    """

    texts: tuple[str, ...]
    edits: tuple[int, ...] | None = None


class Judge(ABC):
    """Tells which routing decisions about held-out queries are right."""

    @abstractmethod
    def rejected(self, queries: Queries) -> Tensor:
        """(M,) bool: whether it is right to leave each alone."""

    @abstractmethod
    def accepted(self, queries: Queries, rows: Sequence[int], edits: Sequence[int]) -> Tensor:
        """(R,) bool: whether it is right to answer query `rows[i]` with edit `edits[i]`."""


class JudgeByMatch(Judge):
    """Quick: a query is right with its own edit, and any other query when it is left alone.

    Stricter than answers are: a neuron that does not fire on a query does it no harm.

    Example:
        >>> judge, queries = JudgeByMatch(), Queries(("Who wrote Emma?", "Emma's author?"), (0, 0))
        >>> judge.accepted(queries, [0, 1], [0, 3]).tolist(), judge.rejected(queries).tolist()
        ([True, False], [False, False])
    """

    def rejected(self, queries: Queries) -> Tensor:
        return torch.full((len(queries.texts),), queries.edits is None)

    def accepted(self, queries: Queries, rows: Sequence[int], edits: Sequence[int]) -> Tensor:
        own = queries.edits or (-1,) * len(queries.texts)
        right = [own[row] == edit for row, edit in zip(rows, edits, strict=True)]
        return torch.tensor(right, dtype=torch.bool)


class JudgeByAnswers(Judge):
    """Thorough: a paraphrase should get the edit's target, any other query its unedited answer.

    Neurons of the facts which are edited for calibration are collected for it.

    Args:
        facts: the M facts which are edited for calibration.
        neurons: (N, P) of real edits, which come before them in the index.
    """

    def __init__(
        self,
        context: FitContext,
        hparams: MeGHyperParams,
        facts: Sequence[EditRequest],
        neurons: Tensor,
    ) -> None:
        self.context = context
        self.template = hparams.prompt_template
        self.length = max_target_length(context.tokenizer, context.calibration, _ANSWER_TOKENS)
        facts = with_new_targets(facts, self._answers([fact.prompt for fact in facts]))
        self.targets = [""] * len(neurons) + [fact.target_new for fact in facts]
        collected = collect(
            context.model, context.tokenizer, context.spec, facts, hparams, context.runtime
        )
        self.neurons = torch.cat([neurons, collected.neurons]).to(input_device(context.model))
        self._unedited: dict[Queries, list[str]] = {}

    def rejected(self, queries: Queries) -> Tensor:
        return _equal(self._before(queries), self._expected(queries))

    def accepted(self, queries: Queries, rows: Sequence[int], edits: Sequence[int]) -> Tensor:
        expected = self._expected(queries)
        answers = self._answers([queries.texts[row] for row in rows], self.neurons[list(edits)])
        return _equal(answers, [expected[row] for row in rows])

    def _expected(self, queries: Queries) -> list[str]:
        if queries.edits is None:
            return self._before(queries)
        return [self.targets[edit] for edit in queries.edits]

    def _before(self, queries: Queries) -> list[str]:
        if queries not in self._unedited:
            self._unedited[queries] = self._answers(queries.texts)
        return self._unedited[queries]

    def _answers(self, texts: Sequence[str], neurons: Tensor | None = None) -> list[str]:
        c = self.context
        prompts = [in_template(self.template, text) for text in texts]
        if neurons is None:
            return batched_answers(c.model, c.tokenizer, prompts, self.length)
        return answers_with(c.model, c.tokenizer, c.spec, neurons, prompts, self.length)


def with_new_targets(facts: Sequence[EditRequest], answers: Sequence[str]) -> list[EditRequest]:
    """`facts` as edits: where the target is the model's answer already, another one's target.

    Example:
        >>> facts = [EditRequest("2 + 2 =", "4"), EditRequest("2 + 3 =", "6")]
        >>> [fact.target_new for fact in with_new_targets(facts, ["4", "5"])]
        ['6', '6']
    """
    targets = [fact.target_new for fact in facts]
    edits = []
    for row, (fact, answer) in enumerate(zip(facts, answers, strict=True)):
        following = (target for target in targets[row:] + targets[:row] if target != answer)
        edits.append(dataclasses.replace(fact, target_new=next(following, fact.target_new)))
    return edits


def _equal(answers: Sequence[str], expected: Sequence[str]) -> Tensor:
    """(M,) bool."""
    return torch.tensor([a == e for a, e in zip(answers, expected, strict=True)], dtype=torch.bool)
