"""Right routing decisions on the questions of a data set, by an encoder's verifier: no LLM is run.

    python examples/route_data.py --data counterfact --path counterfact.json --edits 1024 12639
    python examples/route_data.py --data zsre --path zsre_mend_eval.json --edits 1024
    python examples/route_data.py --path counterfact.json --edits 1024 --tuned
    python examples/route_data.py --path counterfact.json --edits 1024 --tuned --held-out

With so many facts edited, questions about --ask of them, in percent: prompts, also with another
article before the subject, a letter of it wrong or its last word alone, and paraphrases routed to
their very edit;
neighbours, negations, inverse questions and other questions about the subject routed to any edit,
which should be none; milliseconds a question. "Same subject" takes any other relation of the data
set, "fitting" those which such a subject has: no lake is asked for its mother tongue. Facts are
those which `meg-editor benchmark` edits; with --calibration those on which thresholds are chosen.
With --tuned the verifier has learned the data set's tuning facts; with --held-out only every other
relation is asked, and the tuning facts are of the others.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from route_forms import router_of
from transformers import AutoTokenizer

from meg_editor.benchmark.definition import FittingFacts
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.loaders.datasets import DATASETS
from meg_editor.data.preprocessing import one_per_subject, without_conflicts
from meg_editor.data.relations import Relations
from meg_editor.data.splits import Split, choose, split_cases
from meg_editor.data.trap_questions import counter_asked, negated
from meg_editor.fitting.verifier_stage import learn, learnable
from meg_editor.lm.reference import resolve_model_name
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.verifier import Verifier

NEIGHBOURS, ROWS = 3, 256
ITS_OWN = ("prompt", "article", "misspelt", "last word", "paraphrase")


def questions(
    case: EvaluationCase,
    relations: Relations,
    whole: Relations,
    edited: set[str],
    rng: random.Random,
) -> dict[str, list[str]]:
    """Kind -> questions about a fact; the first `len(ITS_OWN)` kinds ask for the edited one.

    Args:
        relations, whole: of the facts that may be edited, and of the whole data set.
    """
    edit = case.request
    near = [probe.prompt for probes in case.locality.values() for probe in probes]
    traps: dict[str, Sequence[str | None]] = {
        "negated": [negated(edit.prompt, edit.subject)],
        "inverse": [counter_asked(edit.prompt, edit.subject, edit.target_new)],
        "same subject": relations.others(case, 1, rng),
        "fitting": whole.others(case, 1, random.Random(edit.prompt), fitting=True),
    }
    return {
        "prompt": [edit.prompt],
        "article": [other_article(edit)],
        "misspelt": misspelt(edit, random.Random(edit.prompt)),
        "last word": last_word(edit),
        "paraphrase": list(case.paraphrases),
        "neighbour": [text for text in near if text not in edited][:NEIGHBOURS],
        **{kind: [t for t in texts if t and t not in edited] for kind, texts in traps.items()},
    }


def other_article(edit: EditRequest) -> str:
    """An edited prompt with "the" before its subject, or without; as it is without a subject."""
    name = edit.subject or ""
    if not name or name not in edit.prompt:
        return edit.prompt
    start, bare = edit.prompt.find(name), name.removeprefix("The ").removeprefix("the ")
    if bare == name and edit.prompt[:start].lower().endswith("the "):
        return edit.prompt[: start - 4] + edit.prompt[start:]
    other = bare if bare != name else f"the {name}" if start else f"The {name}"
    return edit.prompt[:start] + other + edit.prompt[start + len(name) :]


def misspelt(edit: EditRequest, rng: random.Random) -> list[str]:
    """An edited prompt with a letter of its subject's longest word left out, doubled or in another
    place; none where that has fewer than five letters.
    """
    word = max(re.findall(r"[^\W\d_]+", edit.subject or "") or [""], key=len)
    if len(word) < 5 or word not in edit.prompt:
        return []
    at = rng.randrange(1, len(word) - 1)
    one, two = word[at], word[at + 1]
    wrong = rng.choice([two, one + one + two, two + one])
    return [edit.prompt.replace(word, word[:at] + wrong + word[at + 2 :], 1)]


def last_word(edit: EditRequest) -> list[str]:
    """An edited prompt with the last word of its subject alone; none where that has fewer than four
    letters or is the whole name.
    """
    name = (edit.subject or "").split()
    if len(name) < 2 or len(name[-1]) < 4 or not name[-1].isalpha():
        return []
    return [edit.prompt.replace(edit.subject or "", name[-1], 1)]


def measure(
    pool: Sequence[EvaluationCase],
    whole: Relations,
    count: int,
    ask: int,
    encoder: TextEncoder,
    verifier: Verifier | None,
) -> None:
    """Edit `count` facts of the pool and print the decisions about `ask` of them."""
    cases = choose(pool, count, seed=0)
    edits = [case.request for case in cases]
    router = router_of(edits, encoder, verifier=verifier)
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model_name("meg_editor:llama-reference"))
    reader, rng, relations = PromptReader(tokenizer), random.Random(0), Relations(pool)
    edited = {text for case in cases for text in relations.same(case)}
    edited |= {edit.prompt for edit in edits}
    asked = [
        (row, kind, text)
        for row in sorted(rng.sample(range(count), min(count, ask)))
        for kind, texts in questions(cases[row], relations, whole, edited, rng).items()
        for text in texts
    ]
    shares: dict[str, list[bool]] = {}
    start = time.perf_counter()
    for first in range(0, len(asked), ROWS):
        chunk = asked[first : first + ROWS]
        routing = router.route([reader.read(text) for _, _, text in chunk])
        for (row, kind, _), query in zip(chunk, routing, strict=True):
            its_own = kind in ITS_OWN
            led = query.is_edit and (query.edit == row or not its_own)
            shares.setdefault(kind, []).append(led)
    each = 1000 * (time.perf_counter() - start) / len(asked)
    figures = (
        f"{kind} {100 * sum(led) / len(led):.1f} ({len(led)})" for kind, led in shares.items()
    )
    print(f"{count:6} edits: {', '.join(figures)}; {each:.0f} ms", flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=list(DATASETS), default="counterfact")
    parser.add_argument("--path", type=Path, required=True, help="the file of the data set")
    parser.add_argument("--training-path", type=Path, help="facts of the fitting stages (ZsRE)")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="as encoder_name")
    parser.add_argument("--edits", type=int, nargs="+", default=[1024])
    parser.add_argument("--ask", type=int, default=300, help="facts asked about")
    parser.add_argument("--calibration", action="store_true", help="facts which calibrate instead")
    parser.add_argument("--tuned", action="store_true", help="learn the tuning facts first")
    parser.add_argument("--held-out", action="store_true", help="ask relations not tuned on")
    options = parser.parse_args()
    known = DATASETS[options.data](options.path).cases
    cases = one_per_subject(without_conflicts(known))
    training = None
    if options.training_path:
        training = DATASETS[options.data](options.training_path).cases
    split = split_cases(cases, training)
    if options.held_out:
        relations = sorted({case.relation or "" for case in cases})
        learned, asked = set(relations[::2]), set(relations[1::2])
        split = Split(
            of_relations(split.edited, asked),
            of_relations(split.pseudo, learned),
            of_relations(split.calibration, asked),
        )
    encoder = TextEncoder.from_pretrained(resolve_model_name(options.encoder))
    verifier = Verifier.shipped(encoder)
    if options.tuned and verifier:
        facts = FittingFacts.of(split).pseudo
        verifier = Verifier(encoder, learn(encoder, verifier, learnable(facts)))
    pool = split.calibration if options.calibration else split.edited
    for count in options.edits:
        measure(pool, Relations(known), min(count, len(pool)), options.ask, encoder, verifier)


def of_relations(cases: Sequence[EvaluationCase], names: set[str]) -> tuple[EvaluationCase, ...]:
    """Those of some relations."""
    return tuple(case for case in cases if (case.relation or "") in names)


if __name__ == "__main__":
    main()
