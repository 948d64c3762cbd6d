"""CounterFact (Meng et al., 2022), in the schema of ROME and in EasyEdit's."""

from __future__ import annotations

from pathlib import Path

from meg_editor.data.cases import Dataset, EvaluationCase, Probe
from meg_editor.data.loaders.easyedit_schema import easyedit_case
from meg_editor.data.loaders.records import Record, read_records
from meg_editor.data.loaders.rewrite import read_rewrite


def load_counterfact(path: str | Path) -> Dataset:
    """Edits from `target_true` to `target_new`.

    Locality is tested by the neighbourhood prompts (subjects which share the old answer) and by
    the attribute prompts (subjects which have the new one anyway). In EasyEdit's release most
    "rephrase prompts" are CounterFact's generation prompts, which ask for something near the
    fact: where a record names the kind of its prompts (`rephrase_kind`), only those marked
    "paraphrase" are used.
    """
    cases = [
        _case(record) if "requested_rewrite" in record else easyedit_case(record)
        for record in read_records(path)
    ]
    return Dataset("counterfact", tuple(cases))


def _case(record: Record) -> EvaluationCase:
    rewrite = record.record("requested_rewrite")
    request, true = read_rewrite(rewrite)
    others = {
        "neighbour": ("neighborhood_prompts", true),
        "attribute": ("attribute_prompts", request.target_new),
    }
    locality = {
        kind: tuple(Probe(text, (answer,)) for text in record.texts(field))
        for kind, (field, answer) in others.items()
        if field in record
    }
    usable = record.row.get("rephrase_kind", "paraphrase") == "paraphrase"
    return EvaluationCase(
        request,
        truth=true,
        paraphrases=record.texts("paraphrase_prompts") if usable else (),
        locality={kind: probes for kind, probes in locality.items() if probes},
        relation=rewrite.text("relation_id") if "relation_id" in rewrite else None,
    )
