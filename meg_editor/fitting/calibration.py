"""Calibration of the gate's threshold on held-out facts (A.5).

Half of the calibration facts are treated as edited, next to the real edits. Their paraphrases
should be answered with the edits; queries about the other half, and locality prompts of all, as
before. The thorough way looks at answers, with neurons collected for these facts; the quick one at
routing alone.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.context import FitContext
from meg_editor.fitting.judges import Judge, JudgeByAnswers, JudgeByMatch, Queries
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.requests.spans import surface
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import Calibration, Gate, GateOutcomes, calibrate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import build_index

_STATE_WEIGHTS = (0.0, 0.25, 0.5)


def calibrate_on_held_out(
    context: FitContext,
    hparams: MeGHyperParams,
    encoder: TextEncoder,
    gate: Gate,
    neurons: Tensor | None,
    nameless: float,
    usual: Tensor | None,
) -> Calibration:
    """Find the threshold of `gate`, which is left alone, for the N edits of `context`.

    And the weight of the hidden states in the score, unless the hyper-parameters give it.

    Args:
        neurons: (N, P) collected neurons: the thorough way, by answers; None: the quick one, by
            routing alone.
        nameless: share of edits without a subject, in [0, 1]. As many calibration facts lose
            theirs: a score without a name is another one.
        usual: mean and deviation (2, D) of hidden-state features.

    Raises:
        ValueError: too few calibration facts, or without rephrases.
    """
    facts = without_subjects(context.calibration, nameless)
    inside, outside = facts[::2], facts[1::2]
    # As many edits as there will be: every gate is looser the more it holds.
    some = slice(max(len(context.edits) - len(inside), 0))
    edits = [*context.edits[some], *inside]
    first = len(edits) - len(inside)
    paraphrases = Queries(
        tuple(text for fact in inside for text in fact.rephrases),
        tuple(first + row for row, fact in enumerate(inside) for _ in fact.rephrases),
    )
    others = [text for fact in outside for text in (fact.prompt, *fact.rephrases)]
    others += [text for fact in facts for text in fact.locality_prompts]
    # A neighbour of one fact may be another which is edited, in earnest or for calibration.
    edited = {edit.prompt for edit in edits} | {*paraphrases.texts}
    rest = Queries(tuple(text for text in others if text not in edited))
    judge: Judge = JudgeByMatch()
    if neurons is not None:
        judge = JudgeByAnswers(context, hparams, inside, neurons[some])
    sweep = _Sweep(context, hparams, encoder, gate, edits, usual, judge)
    calibrations = [
        dataclasses.replace(calibrate(yes, no), state_weight=weight)
        for weight, yes, no in zip(
            sweep.weights, sweep.outcomes(paraphrases), sweep.outcomes(rest), strict=True
        )
    ]
    return one_standard_error_rule(calibrations, len(paraphrases.texts), len(rest.texts))


class _Sweep:
    """Scores of held-out queries, and what a judge says of them, for each weight of the states."""

    def __init__(
        self,
        context: FitContext,
        hparams: MeGHyperParams,
        encoder: TextEncoder,
        gate: Gate,
        edits: Sequence[EditRequest],
        usual: Tensor | None,
        judge: Judge,
    ) -> None:
        self.encoder, self.judge = encoder, judge
        reader = PromptReader(context.tokenizer, hparams.prompt_template)
        self.states = HiddenStateReader(context.model, context.tokenizer, context.spec, reader)
        self.weights = state_weights(hparams)
        richest = hparams.changed(gate_state_weight=max(self.weights))
        self.index: QueryIndex = build_index(edits, encoder, self.states, usual, richest)
        self.gate = copy.deepcopy(gate)
        self.gate.fit(self.index.anchors, hparams.seed)

    def outcomes(self, queries: Queries) -> list[GateOutcomes]:
        """One for each weight."""
        texts = [surface(text) for text in queries.texts]
        embeddings = self.encoder.encode(texts)
        read = functools.cache(lambda: self.states.read(texts))
        rejected = self.judge.rejected(queries)
        accepted: dict[tuple[int, int], bool] = {}  # (query, edit): few depend on the weight
        outcomes = []
        for weight in self.weights:
            self.index.state_weight = weight
            match = self.index.search(embeddings, texts, lambda rows: read()[rows])
            pairs = list(enumerate(match.index.tolist()))
            new = [pair for pair in pairs if pair not in accepted]
            right = self.judge.accepted(queries, [row for row, _ in new], [e for _, e in new])
            accepted.update(zip(new, right.tolist(), strict=True))
            outcomes.append(
                GateOutcomes(
                    self.gate.score(embeddings, match.score).cpu(),
                    torch.tensor([accepted[pair] for pair in pairs], dtype=torch.bool),
                    rejected,
                )
            )
        return outcomes


def one_standard_error_rule(
    calibrations: Sequence[Calibration], paraphrases: int, others: int
) -> Calibration:
    """Of weights within one standard error of the best, the nearest to the better end.

    Where chance decides between neighbours, the whole sweep tells which to trust on phrasings
    nobody thought of: the encoder (no weight) or the LM (the greatest).

    Args:
        calibrations: by ascending weight.
        paraphrases, others: how many queries of either kind each was computed from.

    Example:
        >>> share, threshold = torch.tensor([0.9]), torch.tensor([0.5])
        >>> sweeps = [Calibration(threshold, share + gain, share, 0.5, weight)
        ...           for weight, gain in ((0.0, 0.0), (0.25, 0.05), (0.5, 0.04))]
        >>> one_standard_error_rule(sweeps, paraphrases=100, others=100).state_weight
        0.5
    """
    best = max(calibrations, key=lambda calibration: calibration.best)
    lowest = best.best - best.error(paraphrases, others)
    alike = [calibration for calibration in calibrations if calibration.best >= lowest]
    return alike[-1 if calibrations[-1].best > calibrations[0].best else 0]


def state_weights(hparams: MeGHyperParams) -> tuple[float, ...]:
    """Those which calibration tries, the cheapest first: hidden states take time to read."""
    if hparams.gate_state_weight is not None:
        return (hparams.gate_state_weight,)
    return tuple(w for w in _STATE_WEIGHTS if w + hparams.gate_name_weight < 1)


def without_subjects(facts: Sequence[EditRequest], share: float) -> list[EditRequest]:
    """`facts`, of which `share` lacks a subject, evenly spread.

    Example:
        >>> facts = [EditRequest(f"question {n}", "x", subject="s") for n in range(8)]
        >>> [fact.subject for fact in without_subjects(facts, 0.5)]
        ['s', 's', None, None, 's', 's', None, None]
    """
    return [
        # Facts come in pairs, one of which is edited.
        dataclasses.replace(fact, subject=None)
        if int((row // 2 + 1) * share) > int(row // 2 * share)
        else fact
        for row, fact in enumerate(facts)
    ]
