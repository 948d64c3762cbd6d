"""Right routing decisions by kind of prompt form, by an encoder's verifier: no LLM is run.

    python examples/route_forms.py --forms prompt_forms.json
    python examples/route_forms.py --forms prompt_forms.json --encoder meg_editor:bert-reference

Edits of the reference world; in percent, forms with less than 95 named below. `--similarity` leaves
the verifier out: then the similarity alone decides, from that threshold on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from meg_editor.data.loaders.forms import load_forms
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation.forms import form_texts, rendered
from meg_editor.lm.reference import resolve_model_name
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import SimilarityGate
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import Router
from meg_editor.routing.verifier import Verifier


def router_of(
    edits: Sequence[EditRequest],
    encoder: TextEncoder,
    name_weight: float = 0.4,  # as gate_name_weight
    similarity: float | None = None,
    verifier: Verifier | None = None,
) -> Router:
    """A router of `edits` that reads no LLM: by `verifier`, else the one shipped for `encoder`, or
    by the similarity alone where its threshold is given.
    """
    if similarity is None:
        verifier = verifier or Verifier.shipped(encoder)
    least = verifier.similarity if verifier else similarity
    if least is None:
        raise ValueError("expected an encoder with a verifier, or a threshold of the similarity")
    index = QueryIndex(
        encoder.encode([edit.prompt for edit in edits]),
        [edit.subject for edit in edits],
        name_weight=name_weight,
    )
    states: Any = None
    return Router(encoder, SimilarityGate(least), index, states, edits, verifier)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forms", type=Path, required=True, help="a file of prompt forms")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="as encoder_name")
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--name-weight", type=float, default=0.4, help="as gate_name_weight")
    parser.add_argument("--similarity", type=float, help="threshold, without a verifier")
    options = parser.parse_args()
    encoder = TextEncoder.from_pretrained(resolve_model_name(options.encoder))
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model_name("meg_editor:llama-reference"))
    cases = edit_cases(load_world(), options.edits, seed=0)
    edits = [case.request for case in cases]
    router = router_of(edits, encoder, options.name_weight, options.similarity)
    reader = PromptReader(tokenizer)
    right: dict[str, list[bool]] = {}
    low: list[tuple[float, str]] = []
    for form in load_forms(options.forms):
        prompts = [rendered(form, form_texts(case), tokenizer) for case in cases]
        rows = [row for row, prompt in enumerate(prompts) if prompt is not None]
        routing = router.route([reader.read(prompts[row] or "") for row in rows])
        expected = [row if form.expect == "edit" else None for row in rows]
        found = [query.edit if query.is_edit else None for query in routing]
        each = [one == other for one, other in zip(expected, found, strict=True)]
        right.setdefault(form.kind, []).extend(each)
        if each and sum(each) < 0.95 * len(each):
            low.append((100 * sum(each) / len(each), form.template or str(form.turns)))
    for kind, each in right.items():
        print(f"{kind:12} {100 * sum(each) / len(each):6.1f}  ({len(each)})")
    for share, text in sorted(low):
        print(f"  {share:5.1f}  {text!r}")


if __name__ == "__main__":
    main()
