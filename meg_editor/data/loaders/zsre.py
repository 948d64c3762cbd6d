"""ZsRE (Levy et al., 2017) in MEND's schema."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from meg_editor.data.cases import Dataset, EvaluationCase, Probe
from meg_editor.data.loaders.records import Record, read_records
from meg_editor.requests.request import EditRequest

_PREFIX = "nq question: "


def load_zsre(path: str | Path, target: Literal["answers", "alt"] = "answers") -> Dataset:
    """Questions about relations, with an open question of Natural Questions for Locality.

    Args:
        target: what is edited in: the true answer (`answers[0]`: ROME, MEMIT and MeG's paper, for
            models which do not know it), or the made-up `alt` (MEND, EasyEdit). Records whose
            `alt` is empty or true are then left out.
    """
    if target not in ("answers", "alt"):
        raise ValueError(f"target: expected 'answers' or 'alt', got {target!r}")
    cases = (_case(record, target) for record in read_records(path))
    return Dataset("zsre", tuple(case for case in cases if case))


def _case(record: Record, target: str) -> EvaluationCase | None:
    answers = record.texts("answers")
    if not answers:
        raise record.error("answers", "at least one answer", record.row["answers"])
    target_new, truth = answers[0], None
    if target == "alt":
        alternatives = record.texts("alt")
        if not alternatives or alternatives[0] in answers:
            return None
        target_new, truth = alternatives[0], answers[0]
    portability: tuple[Probe, ...] = ()
    if target == "alt" and "portability" in record:
        hop = record.record("portability")
        portability = (Probe(hop.text("New Question"), (hop.text("New Answer"),)),)
    return EvaluationCase(
        EditRequest(_question(record.text("src")), target_new, record.text("subject")),
        truth=truth,
        paraphrases=tuple(map(_question, record.texts("rephrase"))),
        locality={"open_question": (_open_question(record),)},
        portability={"one_hop": portability} if portability else {},
    )


def _question(text: str) -> str:
    """Single blanks, no bullet before it, a question mark after it."""
    text = " ".join(text.lstrip("-–—*•. ").split())
    return text if text.endswith("?") else f"{text.rstrip('.')}?"


def _open_question(record: Record) -> Probe:
    text = _question(record.text("loc").removeprefix(_PREFIX))
    return Probe(text, record.texts("loc_ans"))
