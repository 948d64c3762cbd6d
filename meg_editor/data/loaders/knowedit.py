"""KnowEdit (Zhang et al., 2024): ZsRE and wiki_counterfact."""

from __future__ import annotations

from pathlib import Path

from meg_editor.data.cases import Dataset, EvaluationCase, Probe
from meg_editor.data.loaders.records import Record, read_records
from meg_editor.requests.request import EditRequest


def load_knowedit(path: str | Path) -> Dataset:
    """Edits with kinds of locality and portability prompts, as named in the file."""
    return Dataset("knowedit", tuple(map(_case, read_records(path))))


def _case(record: Record) -> EvaluationCase:
    paraphrases = [
        text
        for name in ("rephrase", "rephrase_prompt")
        if name in record
        for text in record.texts(name)
    ]
    return EvaluationCase(
        EditRequest(record.text("prompt"), record.text("target_new"), record.text("subject")),
        truth=next(iter(record.aliases("ground_truth")), None),
        paraphrases=tuple(paraphrases),
        locality=_probes(record, "locality"),
        portability=_probes(record, "portability"),
    )


def _probes(record: Record, name: str) -> dict[str, tuple[Probe, ...]]:
    if name not in record:
        return {}
    inside = record.record(name)
    return {
        kind: tuple(
            Probe(entry.text("prompt"), entry.aliases("ground_truth"))
            for entry in inside.records(kind)
        )
        for kind in inside.row
    }
