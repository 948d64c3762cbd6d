"""Does the model reason with its edits? MQuAKE's three accuracies (table 18)."""

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
        instance_wise: chains of which every hop is answered rightly.
        multi_hop: chains of which at least one of the questions is answered rightly.
    """

    edit_wise: float
    instance_wise: float
    multi_hop: float


def multi_hop_scores(
    answer: Answer, chains: Sequence[MultiHopCase], targets: Mapping[str, str]
) -> MultiHopScores:
    """Ask every edit, hop and question of `chains` (Zhong et al., 2023).

    Args:
        targets: edited prompt -> target.
    """
    edits = list(dict.fromkeys(prompt for chain in chains for prompt in chain.edits))
    hops = [hop for chain in chains for hop in chain.hops]
    questions = [question for chain in chains for question in chain.questions]
    asked = list(dict.fromkeys([*edits, *(hop.prompt for hop in hops), *questions]))
    told = dict(zip(asked, answer(asked), strict=True))
    return MultiHopScores(
        percent([matches(told[prompt], (targets[prompt],)) for prompt in edits]),
        percent([min(matches(told[h.prompt], h.answers) for h in c.hops) for c in chains]),
        percent([max(matches(told[q], c.answers) for q in c.questions) for c in chains]),
    )
