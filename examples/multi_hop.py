"""Do edits carry over to questions of several hops? MQuAKE, with the chain of thought written out.

    python examples/multi_hop.py --path MQuAKE-CF-3k.json --model smollm2

The facts of --chains chains are edited at once. Printed in percent, for the unedited model and for
`routing: prompt` and `routing: decoding`: MQuAKE's three accuracies, asked bare; then each chain
asked once more, step by step, after two worked examples. *Written* is a chain that the model writes
from its beginning. *Begun* is one whose steps before the last edited one are in the prompt. *Step*
counts the answers which state that edited step with its target, *end* those with the right end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.data.cases import Dataset, MultiHopCase
from meg_editor.data.loaders.mquake import load_mquake
from meg_editor.evaluation.metrics import matches, mentions, percent
from meg_editor.evaluation.multi_hop import multi_hop_scores
from meg_editor.lm.answers import batched_answers
from meg_editor.requests.request import EditRequest

LENGTH, BARE = 64, 12  # tokens of an answer
ROWS = 20  # answers at once
THOUGHT = "Let's think step by step."
END = "So the answer is"
WORKED = (
    (
        "What is the capital of the country where the Eiffel Tower stands?",
        "The Eiffel Tower stands in the country of France. The capital of France is Paris.",
        "Paris",
    ),
    (
        "On which continent is the country that the author of Don Quixote is a citizen of?",
        "The author of Don Quixote is Miguel de Cervantes. Miguel de Cervantes is a citizen of "
        "Spain. Spain is located in the continent of Europe.",
        "Europe",
    ),
)


@dataclass(frozen=True)
class Thought:
    """A chain asked step by step.

    Attributes:
        prompt: ends where the model goes on.
        target: of the last edited step.
        answers: right ends of the chain.
    """

    prompt: str
    target: str
    answers: tuple[str, ...]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, required=True, help="MQuAKE's file")
    parser.add_argument("--model", default="smollm2", help="as in `meg-editor edit`")
    parser.add_argument("--chains", type=int, default=100)
    options = parser.parse_args()
    chains, edits = chosen(load_mquake(options.path), options.chains)
    targets = {edit.prompt: edit.target_new for edit in edits}
    written = [thought(chain, targets, begun=False) for chain in chains]
    begun = [t for t in (thought(chain, targets, begun=True) for chain in chains) if t]
    print(f"{len(chains)} chains, {len(edits)} edits, {len(begun)} of the chains can be begun")
    hparams = MeGHyperParams(model_name=options.model)
    model, tokenizer = load_model(hparams)
    edited, _ = fit(model, tokenizer, edits, hparams)
    for name in ("unedited", "prompt", "decoding"):
        asked = model
        if name != "unedited":
            edited.hparams = edited.hparams.changed(routing=name)
            asked = edited

        def answer(prompts: Sequence[str], length: int = BARE, asked: object = asked) -> list[str]:
            return batched_answers(asked, tokenizer, prompts, length, rows=ROWS)

        bare = multi_hop_scores(answer, chains, targets)
        print(
            f"{name}: edit-wise {bare.edit_wise:.1f}, instance-wise {bare.instance_wise:.1f}, "
            f"multi-hop {bare.multi_hop:.1f}; {shares('written', answer, written)}; "
            f"{shares('begun', answer, begun)}",
            flush=True,
        )


def chosen(data: Dataset, count: int) -> tuple[list[MultiHopCase], list[EditRequest]]:
    """The first chains of which none changes a fact of another, and their edits."""
    requests = {case.request.prompt: case.request for case in data.cases}
    contested = {
        case.request.prompt
        for case in data.cases
        if requests[case.request.prompt].target_new != case.request.target_new
    }
    chains: list[MultiHopCase] = []
    edited: set[str] = set()
    unedited: set[str] = set()
    for chain in data.multi_hop:
        changed, steps = set(chain.edits), {step.prompt for step in chain.steps}
        if len(chains) == count or changed & contested or not changed <= steps:
            continue
        if changed & unedited or (steps - changed) & edited:
            continue
        chains.append(chain)
        edited |= changed
        unedited |= steps - changed
    prompts = dict.fromkeys(prompt for chain in chains for prompt in chain.edits)
    return chains, [requests[prompt] for prompt in prompts]


def thought(chain: MultiHopCase, targets: dict[str, str], begun: bool) -> Thought | None:
    """The chain's first question, to be answered step by step; None if it cannot be begun."""
    place = max(n for n, step in enumerate(chain.steps) if step.prompt in targets)
    if begun and not place:
        return None
    shown = [
        f"Question: {question}\n{THOUGHT} {steps} {END} {answer}."
        for question, steps, answer in WORKED
    ]
    known = [f" {s.prompt} {s.answers[0]}." for s in chain.steps[: place if begun else 0]]
    own = f"Question: {chain.questions[0]}\n{THOUGHT}{''.join(known)}"
    return Thought("\n\n".join([*shown, own]), targets[chain.steps[place].prompt], chain.answers)


def shares(
    name: str, answer: Callable[[Sequence[str], int], Sequence[str]], thoughts: Sequence[Thought]
) -> str:
    """How many state the edited step and the right end."""
    answers = [a.split("\n")[0] for a in answer([t.prompt for t in thoughts], LENGTH)]
    step = [mentions(a, t.target) for t, a in zip(thoughts, answers, strict=True)]
    ends = [a.rpartition(END)[2].strip() for a in answers]
    end = [matches(e, t.answers) for t, e in zip(thoughts, ends, strict=True)]
    return f"{name}: step {percent(step):.1f}, end {percent(end):.1f}"


if __name__ == "__main__":
    main()
