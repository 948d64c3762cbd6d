"""Train the verifier of a text encoder on the phrasebook, and measure it on what it has not seen.

    python examples/build_verifier.py --encoder all-MiniLM-L6-v2
    python examples/build_verifier.py --encoder all-MiniLM-L6-v2 --further
    python examples/build_verifier.py --encoder all-MiniLM-L6-v2 --support-vectors
    python examples/build_verifier.py --encoder all-MiniLM-L6-v2 --held-out

The first writes the file which is shipped (meg_editor/routing/verifiers/), after about an hour on
two cores; the second trains that one on, when the phrasebook has grown; the third trains only the
support vectors, in a minute. The fourth leaves a fifth of the relations and of the forms out, and
prints the share of right decisions on these, by what is asked.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from safetensors.torch import save_file

from meg_editor.data.phrasebook.phrasebook import Pair, Phrasebook
from meg_editor.fitting.support_vector_training import support_vectors_of
from meg_editor.fitting.verifier_training import train_verifier
from meg_editor.lm.reference import resolve_model_name
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.verifier import Verifier, shipped_path

PART = 5  # one of so many relations and forms is held out


def main() -> None:
    """Train, measure or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="as encoder_name")
    parser.add_argument("--steps", type=int, default=3000)
    way = parser.add_mutually_exclusive_group()  # the shipped one has seen what is held out
    way.add_argument("--further", action="store_true", help="go on from the shipped verifier")
    way.add_argument("--support-vectors", action="store_true", help="only these")
    way.add_argument("--held-out", action="store_true", help="measure, and write nothing")
    options = parser.parse_args()
    encoder = TextEncoder.from_pretrained(resolve_model_name(options.encoder))
    book = Phrasebook.load()
    seen, unseen = halves(book) if options.held_out else (book, book)
    start = time.time()

    def report(step: int, loss: float) -> None:
        if step % 100 == 99:
            print(f"{time.time() - start:6.0f} s  step {step + 1}  loss {loss:.3f}", flush=True)

    known: dict[str, Any] = {}
    shipped = Verifier.shipped(encoder)
    if options.further or options.support_vectors:
        if shipped is None:
            parser.error(f"expected an encoder with a shipped verifier, got {options.encoder}")
        known = {"start": shipped.adapter}
    if options.support_vectors:
        if shipped.dialogue is None:
            parser.error(f"expected a verifier that has learned dialogues, got {options.encoder}'s")
        adapter = dict(known["start"])
    else:
        adapter = train_verifier(encoder, seen, steps=options.steps, report=report, **known)
    if options.held_out:
        rng = random.Random(1)
        print_shares(Verifier(encoder, adapter), [unseen.draw(rng) for _ in range(4000)])
        return
    if "dialogue" in adapter:
        adapter |= support_vectors_of(encoder)
    path = shipped_path(encoder)
    path.parent.mkdir(exist_ok=True)
    save_file(adapter, path)
    print(f"-> {path.name}")


def halves(book: Phrasebook) -> tuple[Phrasebook, Phrasebook]:
    """The phrasebook without every fifth relation and form, and these alone."""
    kinds: tuple[list, list] = ([], [])
    number = 0
    for kind in book.kinds:
        parts: tuple[list, list] = ([], [])
        for relation in kind.relations:
            parts[number % PART == PART - 1].append(relation)
            number += 1
        for group, relations in zip(kinds, parts, strict=True):
            if len(relations) > 1:  # another relation of the subject is what is hard
                group.append(replace(kind, relations=tuple(relations)))
    forms: tuple[list, list] = ([], [])
    for number, form in enumerate(book.forms):
        forms[number % PART == PART - 1].append(form)
    return Phrasebook(kinds[0], forms[0]), Phrasebook(kinds[1], forms[1])


def print_shares(verifier: Verifier, pairs: Sequence[Pair]) -> None:
    """Right decisions in percent, by what is asked."""
    sure = verifier.probability([p.prompt for p in pairs], [p.fact for p in pairs]) >= 0.5
    right: dict[str, list[bool]] = {}
    for pair, yes in zip(pairs, sure.tolist(), strict=True):
        right.setdefault(pair.why, []).append(yes == pair.asks)
        right.setdefault("all", []).append(yes == pair.asks)
    for why in sorted(right):
        share = 100 * sum(right[why]) / len(right[why])
        print(f"{why:28} {share:5.1f}  ({len(right[why])})")


if __name__ == "__main__":
    main()
