"""UnKE (Deng et al., 2024): answers which are paragraphs."""

from __future__ import annotations

from pathlib import Path

from meg_editor.data.cases import Dataset, EvaluationCase, Probe
from meg_editor.data.loaders.records import Record, read_records
from meg_editor.requests.request import EditRequest


def load_unke(path: str | Path) -> Dataset:
    """Long answers to questions; the sub-questions ask for details of the answer."""
    return Dataset("unke", tuple(map(_case, read_records(path))))


def _case(record: Record) -> EvaluationCase:
    details = tuple(Probe(q, (a,)) for q, a in record.pairs("sub_question", "sub_answer"))
    return EvaluationCase(
        EditRequest(record.text("question"), record.text("answer")),
        paraphrases=record.texts("para_question"),
        portability={"detail": details} if details else {},
    )
