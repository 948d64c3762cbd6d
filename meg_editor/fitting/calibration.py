"""Calibration of the gate's threshold on held-out facts, by the answers (A.5).

Half of the calibration facts are edited too, with collected neurons, next to the real edits. Their
paraphrases should get the new answers; queries about the other half, and locality prompts of all,
should get the old ones.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from meg_editor.collection.collect import answers_with, collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.stage import FitContext
from meg_editor.lm.tokens import batched_answers, max_target_length
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import Calibration, Gate, GateOutcomes, calibrate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import build_index

_STATE_WEIGHTS = (0.0, 0.25, 0.5)
_ANSWER_TOKENS = 12  # at least: what begins alike for so long counts as unchanged


def calibrate_on_held_out(
    context: FitContext,
    hparams: MeGHyperParams,
    encoder: TextEncoder,
    gate: Gate,
    neurons: Tensor,
) -> Calibration:
    """Find the threshold of `gate`, which is left alone, for the N edits of `context`.

    And the weight of the hidden states in the score, unless the hyper-parameters give it. Held-out
    facts lack their subject as often as the edits do: a score without a name is another one.

    Args:
        neurons: (N, P) collected neurons.

    Raises:
        ValueError: too few calibration facts, or without rephrases.
    """
    return _HeldOut(context, hparams, encoder, gate, neurons).calibrate()


class _HeldOut:
    """The calibration facts, half of them edited beside the real edits."""

    def __init__(
        self,
        context: FitContext,
        hparams: MeGHyperParams,
        encoder: TextEncoder,
        gate: Gate,
        neurons: Tensor,
    ) -> None:
        self.context, self.hparams, self.encoder = context, hparams, encoder
        self.reader = PromptReader(context.tokenizer, hparams.prompt_template)
        self.states = HiddenStateReader(context.model, context.tokenizer, context.spec, self.reader)
        self.length = max_target_length(context.tokenizer, context.calibration, _ANSWER_TOKENS)
        self.weights = state_weights(hparams)
        facts = _nameless_like(context.edits, context.calibration)
        old = self._answers([fact.prompt for fact in facts[::2]])
        self.inside, self.outside = _edited_for_calibration(facts[::2], old), facts[1::2]
        self.facts = facts
        # As many edits as there will be: every gate is looser the more it holds.
        some = slice(max(len(context.edits) - len(self.inside), 0))
        collected = collect(
            context.model, context.tokenizer, context.spec, self.inside, hparams, context.runtime
        )
        self.neurons = torch.cat([neurons[some], collected.neurons]).to(context.model.device)
        richest = hparams.changed(gate_state_weight=max(self.weights))
        self.index: QueryIndex = build_index(
            [*context.edits[some], *self.inside],
            encoder,
            self.states,
            context.background,
            richest,
        )
        self.gate = copy.deepcopy(gate)
        self.gate.fit(self.index.anchors, hparams.seed)

    def calibrate(self) -> Calibration:
        """The calibration at the best weight of the hidden states."""
        others = [text for fact in self.outside for text in (fact.prompt, *fact.rephrases)]
        others += [text for fact in self.facts for text in fact.locality_prompts]
        # A neighbour of one fact may be another which is edited for calibration.
        edited = {text for fact in self.inside for text in (fact.prompt, *fact.rephrases)}
        others = [text for text in others if text not in edited]
        paraphrases = [text for fact in self.inside for text in fact.rephrases]
        targets = [fact.target_new for fact in self.inside for _ in fact.rephrases]
        calibrations = [
            dataclasses.replace(calibrate(inside, outside), state_weight=weight)
            for weight, inside, outside in zip(
                self.weights,
                self._outcomes(paraphrases, targets),
                self._outcomes(others),
                strict=True,
            )
        ]
        return one_standard_error_rule(calibrations, len(paraphrases), len(others))

    def _answers(self, texts: Sequence[str], neurons: Tensor | None = None) -> list[str]:
        c = self.context
        prompts = [self.reader.wrap(text) for text in texts]
        if neurons is None:
            return batched_answers(c.model, c.tokenizer, prompts, self.length)
        return answers_with(c.model, c.tokenizer, c.spec, neurons, prompts, self.length)

    def _outcomes(
        self, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> list[GateOutcomes]:
        """One for each weight; without `targets` the unedited answers are right."""
        embeddings, before = self.encoder.encode(texts), self._answers(texts)
        expected = before if targets is None else targets
        rejected = _equal(before, expected)
        accepted: dict[tuple[int, int], bool] = {}  # (text, edit): few depend on the weight
        outcomes = []
        for weight in self.weights:
            self.index.state_weight = weight
            match = self.index.search(
                embeddings, texts, lambda rows: self.states.read([texts[row] for row in rows])
            )
            pairs = list(enumerate(match.index.tolist()))
            new = [pair for pair in pairs if pair not in accepted]
            after = self._answers(
                [texts[row] for row, _ in new], self.neurons[[edit for _, edit in new]]
            )
            right = _equal(after, [expected[row] for row, _ in new])
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


def _nameless_like(edits: Sequence[EditRequest], facts: Sequence[EditRequest]) -> list[EditRequest]:
    """`facts`, of which the same share lacks a subject as of `edits`, evenly spread."""
    share = sum(edit.subject is None for edit in edits) / len(edits)
    return [
        # Facts come in pairs, one of which is edited.
        dataclasses.replace(fact, subject=None)
        if int((row // 2 + 1) * share) > int(row // 2 * share)
        else fact
        for row, fact in enumerate(facts)
    ]


def _equal(answers: Sequence[str], expected: Sequence[str]) -> Tensor:
    """(M,) bool."""
    return torch.tensor([a == e for a, e in zip(answers, expected, strict=True)], dtype=torch.bool)


def _edited_for_calibration(
    facts: Sequence[EditRequest], answers: Sequence[str]
) -> list[EditRequest]:
    """`facts` as edits: where the target is the model's answer already, another one's target."""
    targets = [fact.target_new for fact in facts]
    edits = []
    for row, (fact, answer) in enumerate(zip(facts, answers, strict=True)):
        following = (target for target in targets[row:] + targets[:row] if target != answer)
        edits.append(dataclasses.replace(fact, target_new=next(following, fact.target_new)))
    return edits
