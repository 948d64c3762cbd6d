"""Does an edit hold where the model itself gets to it, in the midst of an answer?

    python examples/while_decoding.py --model smollm2

Facts about countries are edited. In the first table each prompt has the model write notes about
one of them, whose second or a later sentence is the edited fact; the prompt itself asks for no
fact. In the second table the edited fact is the second step of a thought. Printed, for
`routing: prompt` and `routing: decoding`: how often the edited sentence has the new answer, how
often the other sentences stay as they were, and the time of an answer, by turns with the one and
the other.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence

import torch

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.data.world.facts import Fact, World, load_world
from meg_editor.lm.answers import greedy_answers
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
ROWS = 20  # unedited answers at once
PEOPLE = ("Ann", "Boris", "Chloe", "Dario", "Emma", "Farid", "Gita", "Henry")
ROUTINGS = ("prompt", "decoding")


def notes(world: World, country: str) -> str:
    """The notes on a country, as they are true."""
    answers = answers_of(world, country)
    lines = [f"{begin} {answers[relation]}{end}" for relation, (begin, end) in SENTENCES.items()]
    return f"Notes on {country}: {' '.join(lines)}"


def answers_of(world: World, country: str) -> dict[str, str]:
    """The answer of each relation of a country."""
    return {fact.relation: fact.answer for fact in world.by_subject[country]}


def sentence(answer: str, relation: str) -> str | None:
    """What the notes say of a relation; None if they do not get to it."""
    begin, end = SENTENCES[relation]
    _, found, rest = answer.partition(begin)
    return rest.partition(end)[0].strip() if found else None


def steps(world: World, fact: Fact, place: int) -> list[str]:
    """Prompts whose second step is the fact, after a worked example of their form."""
    capital, person = answers_of(world, fact.subject)["capital"], PEOPLE[place % len(PEOPLE)]
    shown, relation = answers_of(world, SHOWN[0]), fact.relation
    prompts = [
        f"Question: What is the {relation} of the country where Max lives, which is {SHOWN[0]}? "
        f"Let's think step by step. Max's country is {SHOWN[0]}. The {relation} of {SHOWN[0]} is "
        f"{shown[relation]}.\n\nQuestion: What is the {relation} of the country where {person} "
        f"lives, which is {fact.subject}? Let's think step by step. {person}'s country is"
    ]
    if relation != "capital":
        prompts.append(
            f"Question: What is the {relation} of the country whose capital is "
            f"{shown['capital']}? Let's think step by step: {shown['capital']} is the capital of "
            f"{SHOWN[0]}. The {relation} of {SHOWN[0]} is {shown[relation]}.\n\n"
            f"Question: What is the {relation} of the country whose capital is {capital}? "
            f"Let's think step by step: {capital} is the capital of"
        )
    return prompts


def second_step(answer: str, fact: Fact) -> str | None:
    """What the second step says; None where it is not about the fact."""
    found = re.search(rf"{fact.relation} of {re.escape(fact.subject)} is (?:the )?(.*?)\.", answer)
    return found[1].strip() if found else None


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
    parser.add_argument("--steps", type=int, default=40, help="prompts of the second table")
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
    before, after = by_turns("notes", model, edited, tokenizer, prompts)
    report_notes("unedited", facts, edits, before, before)
    for routing in ROUTINGS:
        answers = after[routing]
        report_notes(routing, facts, edits, before, answers)
    gone_on = [
        continued(model, tokenizer, *row)
        for row in zip(prompts, facts, before, after["decoding"], strict=True)
    ]
    report_notes("decoding, from there on", facts, edits, gone_on, after["decoding"])
    idle = [
        prompt.replace(fact.subject, "Atlantis")
        for prompt, fact in zip(prompts, facts, strict=True)
    ]
    by_turns("no edited subject", model, edited, tokenizer, idle[:20])

    thoughts = [
        (fact, edit, prompt)
        for place, (fact, edit) in enumerate(zip(facts, edits, strict=True))
        for prompt in steps(world, fact, place)
    ][: options.steps]
    prompts = [prompt for _, _, prompt in thoughts]
    before, after = by_turns("second step", model, edited, tokenizer, prompts)
    for name, answers in (("unedited", before), *after.items()):
        said = [second_step(a, fact) for a, (fact, _, _) in zip(answers, thoughts, strict=True)]
        new = sum(s == edit.target_new for s, (_, edit, _) in zip(said, thoughts, strict=True))
        stated = sum(s is not None for s in said)
        print(f"{name}: of {len(said)} thoughts {stated} get to the fact, {new} with the new one")


def by_turns(
    name: str, model: MeGModel, edited: MeGModel, tokenizer: object, prompts: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """First lines of the answers: unedited, and for each routing; prints the times.

    The edited model answers one prompt after another. What is read once is read before.
    """
    before: list[str] = []
    for start in range(0, len(prompts), ROWS):
        before += written(model, tokenizer, prompts[start : start + ROWS])
    after: dict[str, list[str]] = {routing: [] for routing in ROUTINGS}
    seconds = dict.fromkeys(ROUTINGS, 0.0)
    edited.hparams = edited.hparams.changed(routing="decoding")
    written(edited, tokenizer, prompts[:1])
    for prompt in prompts:
        for routing in ROUTINGS:
            edited.hparams = edited.hparams.changed(routing=routing)
            start = time.perf_counter()
            after[routing] += written(edited, tokenizer, [prompt])
            seconds[routing] += time.perf_counter() - start
    each = {routing: total / len(prompts) for routing, total in seconds.items()}
    print(
        f"{name}: {len(prompts)} answers of {LENGTH} tokens, "
        + ", ".join(f"routing {routing} {value:.2f} s" for routing, value in each.items())
        + f" ({each['decoding'] / each['prompt'] - 1:+.1%})",
        flush=True,
    )
    return before, after


def written(model: MeGModel, tokenizer: object, prompts: Sequence[str]) -> list[str]:
    """The first line of each answer."""
    answers = greedy_answers(model, tokenizer, prompts, LENGTH)
    return [answer.split("\n")[0] for answer in answers]


def continued(
    model: MeGModel, tokenizer: object, prompt: str, fact: Fact, before: str, after: str
) -> str:
    """The answer `before`, its edited sentence, and how the unedited model goes on behind that.

    A text with another capital goes on otherwise, whoever writes it.
    """
    begin, end = SENTENCES[fact.relation]
    head, found, rest = after.partition(begin)
    if before == after or not found or end not in rest:
        return before
    said = begin + rest[: rest.index(end) + len(end)]
    (further,) = written(model, tokenizer, [f"{prompt} {head}{said}"])
    return f"{before.partition(begin)[0]}{said} {further}"


def report_notes(
    name: str, facts: list[Fact], edits: list[EditRequest], before: list[str], after: list[str]
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
        f"{same} of {other} other sentences as before",
        flush=True,
    )


if __name__ == "__main__":
    main()
