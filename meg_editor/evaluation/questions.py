"""Questions about edits, the same for every method."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from meg_editor.data.cases import EvaluationCase, Probe
from meg_editor.data.preprocessing import edited_keys, key
from meg_editor.data.relations import Relations
from meg_editor.data.trap_questions import counter_asked, negated
from meg_editor.lm.answers import batched_tokens, decoded
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import max_target_length
from meg_editor.requests.prompts import PromptReader

MAX_NEW_TOKENS = 12  # of an answer; more where a target is longer


@dataclass(frozen=True)
class Question:
    """A query put to a model, and its target.

    Attributes:
        target: the answer for AG and TF; for Locality that of the unedited model, which may be "".
        kind: "reliability", "generality", "locality:…", "portability:…" or "trap:…", with their
            kinds.
        edit: the index of the case it belongs to.
        answers: the true ones, where known: `target` with its aliases, or for Locality those of the
            data set; for a trap the edit's target, which is wrong.
        tokens: of `target` as the unedited model generated them; empty where it is a text.

    Example:
        >>> Question("The capital of France is", "Lima", "reliability", edit=0).target
        'Lima'
    """

    prompt: str
    target: str
    kind: str
    edit: int
    answers: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def family(self) -> str:
        """Of its kind: "locality" of "locality:…"."""
        return self.kind.partition(":")[0]


def questions_of(
    base: CausalLM,
    tokenizer: Tokenizer,
    cases: Sequence[EvaluationCase],
    reader: PromptReader,
    max_new_tokens: int = MAX_NEW_TOKENS,
    traps: Relations | None = None,
    only: Collection[int] | None = None,
) -> list[Question]:
    """Questions about `cases`; the targets of locality prompts are the answers of `base`.

    Args:
        base: the unedited model.
        reader: has the prompt template.
        max_new_tokens: of an answer; more if some target is longer.
        traps: phrasings of relations. Adds for each edit its negation, its inverse (the answer
            given, the subject sought), and another relation of its subject in such a phrasing.
        only: indices of the cases to ask about; None: all.
    """
    questions = []
    length = max_target_length(tokenizer, [case.request for case in cases], max_new_tokens)
    chosen = [(i, case) for i, case in enumerate(cases) if only is None or i in only]
    for index, case in chosen:
        target = case.request.target_new
        questions.append(Question(case.request.prompt, target, "reliability", index))
        questions += [Question(p, target, "generality", index) for p in case.paraphrases]
        questions += [
            Question(probe.prompt, probe.answers[0], f"portability:{kind}", index, probe.answers)
            for kind, probes in case.portability.items()
            for probe in probes
        ]
    local = [
        (probe, f"locality:{kind}", index)
        for index, case in chosen
        for kind, probes in case.locality.items()
        for probe in probes
    ]
    if traps:
        edited = edited_keys(cases, traps)
        local += [trap for i, case in chosen for trap in _traps(case, i, traps, edited)]
    prompts = [reader.wrap(probe.prompt) for probe, _, _ in local]
    generated = batched_tokens(base, tokenizer, prompts, length)
    answers = decoded(tokenizer, generated)
    questions += [
        Question(probe.prompt, answer, kind, index, probe.answers, tuple(tokens))
        for (probe, kind, index), answer, tokens in zip(local, answers, generated, strict=True)
    ]
    return questions


def _traps(
    case: EvaluationCase, index: int, relations: Relations, edited: Collection[str]
) -> list[tuple[Probe, str, int]]:
    edit = case.request
    texts = {
        "trap:negated": negated(edit.prompt, edit.subject),
        "trap:counter-asked": counter_asked(edit.prompt, edit.subject, edit.target_new),
    }
    for text in relations.others(case, 1, random.Random(edit.prompt)):
        if key(text) not in edited:  # another edit of the same subject
            texts["trap:same subject"] = text
    target = (edit.target_new,)
    return [(Probe(text, target), kind, index) for kind, text in texts.items() if text]
