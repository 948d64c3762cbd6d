"""The flat schema of EasyEdit's files: CounterFact, and WikiBigEdit (Thede et al., 2025)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from meg_editor.data.cases import Dataset, EvaluationCase, Probe
from meg_editor.data.loaders.records import Record, read_records
from meg_editor.requests.request import EditRequest

# Fields of the released files, wiki_big_edit_*.json, and what EasyEdit calls them.
_RELEASED = {
    "update": "prompt",
    "ans": "target_new",
    "rephrase": "rephrase_prompt",
    "loc": "locality_prompt",
    "loc_ans": "locality_ground_truth",
}
_FOLLOWS = {"persona": ("personas", "ans"), "multi_hop": ("mhop", "mhop_ans")}


def load_wikibigedit(path: str | Path) -> Dataset:
    """Facts of Wikidata which are new or have changed: the files as released, or in EasyEdit's
    schema.

    Of the released ones the question in a persona's words and the one of two hops are portability.
    """
    return Dataset("wikibigedit", tuple(map(_wikibigedit_case, read_records(path))))


def _wikibigedit_case(record: Record) -> EvaluationCase:
    if "update" not in record:
        return easyedit_case(record)
    row = {_RELEASED.get(name, name): value for name, value in record.row.items()}
    follows: dict[str, tuple[Probe, ...]] = {
        kind: (Probe(record.text(asked), record.aliases(answer)),)
        for kind, (asked, answer) in _FOLLOWS.items()
        if asked in record and answer in record
    }
    return replace(easyedit_case(Record(row, record.where)), portability=follows)


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
