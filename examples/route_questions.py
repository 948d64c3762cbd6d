"""Which questions about a subject get its edit, by an encoder's verifier: no LLM is run.

    python examples/route_questions.py --questions examples/other_questions.json

The file has facts of any kind, each with two questions for it in other words, which have to get the
edit, and two for something else that sounds like it (the CFO, not the CEO), which have to get none.
Those of other_questions.json were written by a language model that knew nothing of the router.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from route_forms import router_of

from meg_editor.lm.reference import resolve_model_name
from meg_editor.requests.prompts import ReadPrompt
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder

KINDS = ("same", "other")


def routed(
    facts: list[dict[str, Any]], encoder: TextEncoder
) -> dict[str, list[tuple[EditRequest, str, bool]]]:
    """Kind -> (edit, question, whether it got that edit) of each question."""
    edits = [EditRequest(f["prompt"], f["target_new"], f["subject"]) for f in facts]
    router = router_of(edits, encoder)
    results = {}
    for kind in KINDS:
        asked = [(row, text) for row, fact in enumerate(facts) for text in fact[kind]]
        routing = router.route([ReadPrompt.of(text) for _, text in asked])
        results[kind] = [
            (edits[row], text, query.is_edit and query.edit == row)
            for (row, text), query in zip(asked, routing, strict=True)
        ]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2")
    parser.add_argument("--wrong", action="store_true", help="list what goes wrong")
    options = parser.parse_args()
    facts = json.loads(options.questions.read_text("utf-8"))
    encoder = TextEncoder.from_pretrained(resolve_model_name(options.encoder))
    for kind, results in routed(facts, encoder).items():
        print(f"{kind}: {sum(got for *_, got in results)} of {len(results)} get the edit")
        for edit, text, got in results if options.wrong else ():
            if got != (kind == "same"):
                print(f"  {edit.prompt} | {text}")


if __name__ == "__main__":
    main()
