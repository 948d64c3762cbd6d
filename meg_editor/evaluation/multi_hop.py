"""Multi-hop reasoning with edits: MQuAKE's three accuracies (table 18)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from meg_editor.data.cases import MultiHopCase
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
