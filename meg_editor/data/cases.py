"""Edits with the questions that evaluate them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meg_editor.config.input_files import short_repr
from meg_editor.requests.request import EditRequest, merge_requests


@dataclass(frozen=True)
class Probe:
    """A question, and its accepted answers: a name and its aliases; none if unknown.

    Example:
        >>> Probe("The capital of France is", ("Paris",)).answers
        ('Paris',)
    """

    prompt: str
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _text("prompt", self.prompt))
        object.__setattr__(self, "answers", _texts("answers", self.answers))


@dataclass(frozen=True)
class EvaluationCase:
    """An edit and the questions that evaluate it.

    Attributes:
        request: the edit.
        truth: the answer before the edit, where known.
        paraphrases: other phrasings of the prompt (Generality); no fitting stage may see them.
        locality: kind -> questions whose answers must not change (Locality).
        portability: kind -> questions with the answers which follow from the edit.
        relation: the relation of the fact and its locality prompts, where the data set names it.
        statement, question: the fact put as a statement which the answer completes, and as a
            question, where the data set has both.

    Example:
        >>> edit = EditRequest("The capital of France is", "Lima", "France")
        >>> case = EvaluationCase(edit, paraphrases=("France's capital city is",))
        >>> case.request.target_new, len(case.paraphrases)
        ('Lima', 1)

    Raises:
        RequestError: the request lacks a prompt or a target.
        ValueError: another field is no text, tuple of texts or kinds of probes.
    """

    request: EditRequest
    truth: str | None = None
    paraphrases: tuple[str, ...] = ()
    locality: dict[str, tuple[Probe, ...]] = field(default_factory=dict)
    portability: dict[str, tuple[Probe, ...]] = field(default_factory=dict)
    relation: str | None = None
    # Not in the repr, from which a benchmark knows its finished cells.
    statement: str | None = field(default=None, repr=False)
    question: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        merge_requests([self.request])
        object.__setattr__(self, "paraphrases", _texts("paraphrases", self.paraphrases))
        for name in ("locality", "portability"):
            kinds = getattr(self, name)
            if not (isinstance(kinds, Mapping) and all(map(_are_probes, kinds.values()))):
                raise ValueError(
                    f"{name}: expected {{kind: (Probe(...), ...)}}, got {short_repr(kinds)}"
                )

    @property
    def texts(self) -> tuple[str, ...]:
        """The edited prompt, its paraphrases and the locality prompts."""
        probes = (probe.prompt for kind in self.locality.values() for probe in kind)
        return (self.request.prompt, *self.paraphrases, *probes)

    @classmethod
    def from_request(cls, request: EditRequest) -> EvaluationCase:
        """The request, evaluated by its own rephrases and locality prompts."""
        return cls(
            replace(request, rephrases=(), locality_prompts=()),
            paraphrases=request.rephrases,
            locality={"neighbour": tuple(map(Probe, request.locality_prompts))},
        )


@dataclass(frozen=True)
class MultiHopCase:
    """A chain of facts of which some are edited (MQuAKE).

    Attributes:
        edits: the edited prompts of the chain.
        questions: ways to ask for the end of the chain.
        answers: the right ones after the edits.
        hops: every fact of the chain, asked for, as it is after the edits.
        steps: the same as statements which the answer completes, where the data set has them.
    """

    edits: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    hops: tuple[Probe, ...]
    steps: tuple[Probe, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Dataset:
    """The cases of a benchmark, one per edit."""

    name: str
    cases: tuple[EvaluationCase, ...]
    multi_hop: tuple[MultiHopCase, ...] = ()


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected text, got {short_repr(value)}")
    return value.strip()


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Of a text alone, whose comma was forgotten, letters are not taken for texts."""
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"{name}: expected a tuple of texts, got {short_repr(value)}")
    return tuple(_text(f"{name}[{place}]", text) for place, text in enumerate(value))


def _are_probes(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(one, Probe) for one in value)
