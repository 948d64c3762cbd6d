"""Does an edit hold where the model itself gets to it, in the midst of an answer?

    python examples/while_decoding.py --model smollm2

Facts about countries are edited. Each prompt has the model write notes about one of them, whose
second or a later sentence is the edited fact; the prompt itself asks for no fact. Printed: how
often the edited sentence has the new answer, and how often the other sentences stay as they were,
by `routing: prompt` and by `routing: decoding`, and what the second costs.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.data.world.facts import Fact, World, load_world
from meg_editor.lm.tokens import greedy_answers
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest

SENTENCES = {
    "continent": ("It lies in", "."),
    "capital": ("Its capital is", "."),
    "currency": ("Its currency is", "."),
    "language": ("People there speak", "."),
}
SHOWN = ("Peru", "Hungary", "Japan")  # notes the model is shown
LENGTH = 48  # tokens of an answer


def notes(world: World, country: str) -> str:
    """The notes on a country, as they are true."""
    answers = {fact.relation: fact.answer for fact in world.by_subject[country]}
    lines = [f"{begin} {answers[relation]}{end}" for relation, (begin, end) in SENTENCES.items()]
    return f"Notes on {country}: {' '.join(lines)}"


def sentence(answer: str, relation: str) -> str | None:
    """What the notes say of a relation; None if they do not get to it."""
    begin, end = SENTENCES[relation]
    _, found, rest = answer.partition(begin)
    return rest.partition(end)[0].strip() if found else None


def facts_of(world: World, count: int, rng: random.Random) -> list[Fact]:
    """Facts about countries whose notes are complete, one for each country."""
    whole = [
        country
        for country, facts in world.by_subject.items()
        if set(SENTENCES) <= {fact.relation for fact in facts} and country not in SHOWN
    ]
    chosen = rng.sample(whole, min(count, len(whole)))
    return [
        rng.choice([f for f in world.by_subject[c] if f.relation in list(SENTENCES)[1:]])
        for c in chosen
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="as in `meg-editor edit`")
    parser.add_argument("--prompts", type=int, default=100)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    world, rng = load_world(), random.Random(0)
    facts = facts_of(world, options.prompts, rng)
    edits = [
        EditRequest(
            rng.choice(world.prompts(fact, "edit")),
            rng.choice([a for a in world.answers[fact.relation] if a != fact.answer]),
            fact.subject,
        )
        for fact in facts
    ]
    hparams = MeGHyperParams(model_name=options.model)
    model, tokenizer = load_model(hparams)
    edited, _ = fit(model, tokenizer, edits, hparams)
    shown = "\n".join(notes(world, country) for country in SHOWN)
    prompts = [f"{shown}\nNotes on {fact.subject}:" for fact in facts]
    before, seconds = written(model, tokenizer, prompts)
    report("unedited", facts, edits, before, before, seconds)
    for routing in ("prompt", "decoding"):
        edited.hparams = edited.hparams.changed(routing=routing)
        written(edited, tokenizer, prompts[:1])  # hidden states of the edits are read once
        answers, seconds = written(edited, tokenizer, prompts)
        report(routing, facts, edits, before, answers, seconds)
    idle = [
        prompt.replace(fact.subject, "Atlantis")
        for prompt, fact in zip(prompts, facts, strict=True)
    ]
    for routing in ("prompt", "decoding"):
        edited.hparams = edited.hparams.changed(routing=routing)
        print(
            f"{routing}: {written(edited, tokenizer, idle[:20])[1]:.1f} s for 20 prompts "
            "without an edited subject"
        )


def written(model: MeGModel, tokenizer: object, prompts: list[str]) -> tuple[list[str], float]:
    """The first line of each answer, one prompt after another, and the seconds they took."""
    start = time.perf_counter()
    answers = [greedy_answers(model, tokenizer, [p], LENGTH)[0].split("\n")[0] for p in prompts]
    return answers, time.perf_counter() - start


def report(
    name: str,
    facts: list[Fact],
    edits: list[EditRequest],
    before: list[str],
    after: list[str],
    seconds: float,
) -> None:
    """Print one line."""
    reached = new = other = same = 0
    for fact, edit, old, text in zip(facts, edits, before, after, strict=True):
        stated = sentence(text, fact.relation)
        reached += stated is not None
        new += stated == edit.target_new
        for relation in SENTENCES:
            if relation != fact.relation and sentence(old, relation) is not None:
                other += 1
                same += sentence(old, relation) == sentence(text, relation)
    print(
        f"{name}: of {len(facts)} answers {reached} state the fact, {new} with the new answer; "
        f"{same} of {other} other sentences as before; {seconds:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
