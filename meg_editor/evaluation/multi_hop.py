"""Multi-hop reasoning with edits: MQuAKE's three accuracies (table 18)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from meg_editor.data.cases import EvaluationCase, MultiHopCase, Probe
from meg_editor.data.preprocessing import key
from meg_editor.evaluation.metrics import matches, percent

# B bare questions -> B answers.
Answer = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class MultiHopScores:
    """In percent.

    Attributes:
        edit_wise: edited prompts answered with their targets.
        instance_wise: chains with a right answer to every hop.
        multi_hop: chains with at least one right answer to their questions.
    """

    edit_wise: float
    instance_wise: float
    multi_hop: float


def chains_of(
    cases: Sequence[EvaluationCase], chains: Sequence[MultiHopCase]
) -> list[MultiHopCase]:
    """The chains of which every edit is among `cases`, and no hop is edited to something else.

    An edit of one chain may be a hop of another, whose right answers it changes.
    """
    targets = {
        key(text): case.request.target_new
        for case in cases
        for text in (*case.paraphrases, case.request.prompt)
    }
    edited = {case.request.prompt for case in cases}

    def stands(hop: Probe) -> bool:
        target = targets.get(key(hop.prompt))
        return target is None or bool(matches(target, hop.answers))

    return [
        chain
        for chain in chains
        if edited.issuperset(chain.edits) and all(map(stands, (*chain.hops, *chain.steps)))
    ]


def multi_hop_scores(
    answer: Answer, chains: Sequence[MultiHopCase], targets: Mapping[str, str]
) -> MultiHopScores:
    """Accuracies over every edit, hop and question of `chains` (Zhong et al., 2023).

    Args:
        targets: edited prompt -> target.
    """
    edits = list(dict.fromkeys(prompt for chain in chains for prompt in chain.edits))
    hops = [hop for chain in chains for hop in chain.hops]
    questions = [question for chain in chains for question in chain.questions]
    prompts = list(dict.fromkeys([*edits, *(hop.prompt for hop in hops), *questions]))
    answers = dict(zip(prompts, answer(prompts), strict=True))
    return MultiHopScores(
        percent([matches(answers[prompt], (targets[prompt],)) for prompt in edits]),
        percent([min(matches(answers[h.prompt], h.answers) for h in c.hops) for c in chains]),
        percent([max(matches(answers[q], c.answers) for q in c.questions) for c in chains]),
    )
