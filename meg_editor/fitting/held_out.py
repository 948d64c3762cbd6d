"""Rehearse the routing on facts set aside: what does a threshold do to answers?

Half of the calibration facts are edited for the occasion, with neurons of their own, next to the
real edits. Their paraphrases should get the new answers; whatever is asked about the other half,
and about the neighbours of all, should get the old ones.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meg_editor.collection.collect import answers_with, collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.tokens import batched_answers, max_target_length
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import Calibration, Gate, Trial, calibrate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.router import build_index

_STATE_WEIGHTS = (0.0, 0.25, 0.5)
_ANSWER_TOKENS = 12  # at least: what begins alike for so long counts as unchanged


def rehearse(
    model: Any,
    tokenizer: Any,
    spec: NeuronSpec,
    encoder: TextEncoder,
    gate: Gate,
    edits: Sequence[EditRequest],
    neurons: Tensor,
    calibration: Sequence[EditRequest],
    background: Sequence[str],
    hparams: MeGHyperParams,
) -> Calibration:
    """Find the threshold of `gate`, which is left alone, for N edits.

    And the weight of the LLM's states in the similarity, unless the hyper-parameters give it.

    Args:
        neurons: (N, P) collected neurons.
        calibration: facts with rephrases and locality prompts, none of them edited.
        background: queries which are not edited.

    Raises:
        ValueError: too few calibration facts, or without rephrases.
    """
    reader = PromptReader(tokenizer, hparams.prompt_template)
    length = max_target_length(tokenizer, calibration, _ANSWER_TOKENS)

    def answers(texts: Sequence[str], own: Tensor | None = None) -> list[str]:
        prompts = [reader.wrap(text) for text in texts]
        if own is None:
            return batched_answers(model, tokenizer, prompts, length)
        return answers_with(model, tokenizer, spec, own, prompts, length)

    told = answers([fact.prompt for fact in calibration[::2]])
    inside, outside = _pretend(calibration[::2], told), calibration[1::2]
    # As many edits as there will be: every gate is looser the more it holds.
    kept = slice(max(len(edits) - len(inside), 0))
    pretended = collect(model, tokenizer, spec, inside, hparams).neurons
    neurons = torch.cat([neurons[kept], pretended]).to(model.device)
    weights = state_weights(hparams)
    states = HiddenStateReader(model, tokenizer, spec, reader)
    richest = dataclasses.replace(hparams, gate_state_weight=max(weights))
    index = build_index([*edits[kept], *inside], encoder, states, background, richest)
    gate = copy.deepcopy(gate)
    gate.fit(index.anchors, hparams.seed)

    def trials(texts: list[str], wanted: list[str] | None = None) -> list[Trial]:
        """One for each of the weights."""
        embeddings, before = encoder.encode(texts), answers(texts)
        goal = before if wanted is None else wanted
        rejected = _equal(before, goal)
        accepted: dict[tuple[int, int], bool] = {}  # (text, edit): few depend on the weight
        found = []
        for weight in weights:
            index.state_weight = weight
            match = index.search(
                embeddings, texts, lambda rows: states.read([texts[row] for row in rows])
            )
            pairs = list(enumerate(match.index.tolist()))
            new = [pair for pair in pairs if pair not in accepted]
            after = answers([texts[row] for row, _ in new], neurons[[edit for _, edit in new]])
            right = _equal(after, [goal[row] for row, _ in new])
            accepted.update(zip(new, right.tolist(), strict=True))
            found.append(
                Trial(
                    gate.score(embeddings, match.similarity).cpu(),
                    torch.tensor([accepted[pair] for pair in pairs], dtype=torch.bool),
                    rejected,
                )
            )
        return found

    others = [text for fact in outside for text in (fact.prompt, *fact.rephrases)]
    others += [text for fact in calibration for text in fact.locality_prompts]
    # A neighbour of one fact may be another which is pretended to be edited.
    known = {text for fact in inside for text in (fact.prompt, *fact.rephrases)}
    others = [text for text in others if text not in known]
    paraphrases = [text for fact in inside for text in fact.rephrases]
    targets = [fact.target_new for fact in inside for _ in fact.rephrases]
    found = [
        dataclasses.replace(calibrate(asked, rest), state_weight=weight)
        for weight, asked, rest in zip(
            weights, trials(paraphrases, targets), trials(others), strict=True
        )
    ]
    return settled(found, len(paraphrases), len(others))


def settled(found: Sequence[Calibration], paraphrases: int, others: int) -> Calibration:
    """Of weights as good as the best within its standard error, the nearest to the better end.

    Where chance decides between neighbours, the whole sweep tells which to trust on wordings that
    nobody thought of: the encoder (no weight) or the LLM (the greatest).

    Args:
        found: by ascending weight.
        paraphrases, others: how many queries of either kind each was found from.
    """
    best = max(found, key=lambda calibration: calibration.best)
    least = best.best - best.error(paraphrases, others)
    alike = [calibration for calibration in found if calibration.best >= least]
    return alike[-1 if found[-1].best > found[0].best else 0]


def state_weights(hparams: MeGHyperParams) -> tuple[float, ...]:
    """Those which a rehearsal tries, the cheapest first: states take time to read."""
    if hparams.gate_state_weight is not None:
        return (hparams.gate_state_weight,)
    return tuple(w for w in _STATE_WEIGHTS if w + hparams.gate_name_weight < 1)


def _equal(answers: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """(M,) bool."""
    return torch.tensor([a == w for a, w in zip(answers, wanted, strict=True)], dtype=torch.bool)


def _pretend(facts: Sequence[EditRequest], answers: Sequence[str]) -> list[EditRequest]:
    """`facts` as edits: where the target is the model's answer already, another one's target."""
    targets = [fact.target_new for fact in facts]
    pretended = []
    for row, (fact, answer) in enumerate(zip(facts, answers, strict=True)):
        following = (target for target in targets[row:] + targets[:row] if target != answer)
        pretended.append(dataclasses.replace(fact, target_new=next(following, fact.target_new)))
    return pretended
