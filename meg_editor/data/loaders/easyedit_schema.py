"""The flat schema of EasyEdit's files: CounterFact, and WikiBigEdit (Thede et al., 2025)."""

from __future__ import annotations

from pathlib import Path

from meg_editor.data.cases import Dataset, EvaluationCase, Probe
from meg_editor.data.loaders.records import Record, read_records
from meg_editor.requests.request import EditRequest


def load_wikibigedit(path: str | Path) -> Dataset:
    """Facts of Wikidata which are new or have changed."""
    return Dataset("wikibigedit", tuple(map(easyedit_case, read_records(path))))


def easyedit_case(record: Record) -> EvaluationCase:
    """`prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality_prompt` and
    `locality_ground_truth`; the first three are needed.
    """
    probes: tuple[Probe, ...] = ()
    if "locality_prompt" in record:
        known = "locality_ground_truth" in record
        answers = record.aliases("locality_ground_truth") if known else ()
        probes = (Probe(record.text("locality_prompt"), answers),)
    return EvaluationCase(
        EditRequest(record.text("prompt"), record.text("target_new"), record.text("subject")),
        truth=record.text("ground_truth") if "ground_truth" in record else None,
        paraphrases=record.texts("rephrase_prompt") if "rephrase_prompt" in record else (),
        locality={"neighbour": probes} if probes else {},
    )
