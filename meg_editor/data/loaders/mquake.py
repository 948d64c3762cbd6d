"""MQuAKE (Zhong et al., 2023): chains of facts, some of them edited."""

from __future__ import annotations

from pathlib import Path

from meg_editor.data.cases import Dataset, EvaluationCase, MultiHopCase, Probe
from meg_editor.data.loaders.records import Record, read_records
from meg_editor.data.loaders.rewrite import read_rewrite


def load_mquake(path: str | Path) -> Dataset:
    """One case per edit, however many chains share it, and the chains."""
    edits: dict[str, EvaluationCase] = {}
    chains = []
    for record in read_records(path):
        prompts = []
        for rewrite in record.records("requested_rewrite"):
            case = _edit(rewrite)
            prompts.append(case.request.prompt)
            edits.setdefault(case.request.key, case)
        chains.append(
            MultiHopCase(
                tuple(prompts),
                record.texts("questions"),
                _answers(record, "new_answer"),
                tuple(
                    Probe(hop.text("question"), _answers(hop, "answer"))
                    for hop in record.records("new_single_hops")
                ),
                tuple(
                    Probe(hop.text("cloze"), _answers(hop, "answer"))
                    for hop in record.records("new_single_hops")
                    if "cloze" in hop
                ),
            )
        )
    return Dataset("mquake", tuple(edits.values()), tuple(chains))


def _edit(rewrite: Record) -> EvaluationCase:
    request, truth = read_rewrite(rewrite)
    return EvaluationCase(request, truth=truth, paraphrases=rewrite.texts("question"))


def _answers(record: Record, name: str) -> tuple[str, ...]:
    aliases = record.texts(f"{name}_alias") if f"{name}_alias" in record else ()
    return tuple(dict.fromkeys([record.text(name), *aliases]))
