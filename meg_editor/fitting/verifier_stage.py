"""Before stage 2: the shipped verifier learns how the user's own facts are asked for."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.settings import HParamsError
from meg_editor.data.phrasebook.phrasebook import Pair, Phrasebook
from meg_editor.fitting.context import FitContext
from meg_editor.fitting.stage import Stage, tensor_key
from meg_editor.fitting.verifier_training import train_verifier
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.verifier import Verifier, fact_text
from meg_editor.runtime.artifacts import Artifact, Tensors

_LOG = logging.getLogger(__name__)
_LR = 5e-5  # half of that with which a shipped verifier begins: it is not to forget
# Shares of the pairs that are drawn.
_OWN = 0.5  # from the user's facts; the others from the phrasebook, which has the forms
_FEW = 100  # facts, below which the share is less: a few are not to be learned by heart
_ASKS = 0.5  # of these: the prompt asks for the fact
_REPHRASED = 0.2  # of these: the fact is in other words


class VerifierStage(Stage):
    """Trains the verifier which is shipped for `encoder` on the tuning facts.

    A verifier which has seen 473 relations of a phrasebook refuses many a paraphrase of others, and
    takes some for one another. Facts of the user's kind, with rephrases and locality prompts, show
    it where one relation ends and the next begins.

    Attributes:
        facts: those it learns; none where the user gave no facts.

    Raises:
        HParamsError: a `gate_threshold` that the gate cannot have, or `routing` that needs a
            verifier where none decides.
    """

    name = "verifier"
    settings = ("gate", "verifier_steps", "seed")

    def __init__(self, context: FitContext, encoder: TextEncoder) -> None:
        super().__init__(context)
        self.encoder, self.threshold = encoder, context.hparams.gate_threshold
        self.shipped = Verifier.shipped(encoder) if self.hparams.gate == "verified" else None
        own = [] if context.pseudo.standard else context.pseudo
        self.facts = learnable(own)
        self.reusable = bool(self.shipped and self.facts and self.hparams.verifier_steps)
        if self.shipped and own and not self.facts:
            _LOG.warning(
                "pseudo: none of %d facts has both rephrases and locality prompts, from which the "
                "verifier would learn",
                len(own),
            )
        elif self.shipped and own and not self.reusable:
            _LOG.warning(
                "pseudo: the verifier learns nothing from %d facts, since verifier_steps is 0; "
                "raise it (200 in other models)",
                len(own),
            )
        if self.shipped and not context.calibration.standard and len(context.calibration):
            _LOG.warning(
                "calibration: %d facts are not used, since a verifier decides, whose threshold is "
                "shipped with it; with rephrases and locality prompts it learns from `pseudo`",
                len(context.calibration),
            )
        _check_gate(context.hparams, decided=self.shipped is not None)

    def inputs(self) -> list[Any]:
        adapter = self.shipped.adapter if self.shipped else {}
        return [
            fingerprint(self.encoder),
            self.encoder.pooling,
            {name: tensor_key(value.cpu()) for name, value in adapter.items()},
            self.context.pseudo.digest,
        ]

    def compute(self) -> Tensors:
        if not self.reusable or self.shipped is None:
            return {}
        h = self.hparams
        return learn(self.encoder, self.shipped, self.facts, steps=h.verifier_steps, seed=h.seed)

    def verifier(self, artifact: Artifact | None = None) -> Verifier | None:
        """That of a result, else the shipped one; None where there is none, or another gate
        decides."""
        if self.shipped is None or (artifact is None and self.threshold is None):
            return self.shipped
        adapter = dict(artifact.tensors if artifact else self.shipped.adapter)
        if self.threshold is not None:
            adapter["threshold"] = torch.tensor(self.threshold)
        return Verifier(self.encoder, adapter)


def _check_gate(hparams: MeGHyperParams, *, decided: bool) -> None:
    """Before anything is fitted; `decided`: by a verifier.

    Raises:
        HParamsError: a threshold that nothing or everything reaches, or routing by a verifier that
            there is not.
    """
    if decided:
        what, low, high = "a probability from 0 to 1, since a verifier decides", 0.0, 1.0
    elif hparams.gate == "familiarity":
        what, low, high = "an entropy of at least 0 nats", 0.0, math.inf
    else:
        what, low, high = "a similarity from -1 to 1", -1.0, 1.0
    if hparams.gate_threshold is not None and not low <= hparams.gate_threshold <= high:
        raise HParamsError(
            f"gate_threshold: expected {what}, got {hparams.gate_threshold:g}; another gate has "
            "another range: set `gate` too"
        )
    if hparams.routing == "decoding" and not decided:
        raise HParamsError(
            "routing: decoding needs a verifier: set gate to verified, and encoder_name to one "
            f"that a verifier is shipped for (all-MiniLM-L6-v2), got gate {hparams.gate!r} and "
            f"{hparams.encoder_name!r}; or set routing to prompt"
        )


def learnable(facts: Sequence[EditRequest]) -> list[EditRequest]:
    """Those with rephrases and locality prompts: what asks for the fact, and what does not."""
    return [fact for fact in facts if fact.rephrases and fact.locality_prompts]


def learn(
    encoder: TextEncoder,
    verifier: Verifier,
    facts: Sequence[EditRequest],
    *,
    steps: int = 200,
    seed: int = 0,
) -> Tensors:
    """Adapter of the verifier of `encoder` after so many steps on `learnable` facts.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> fact = EditRequest("Ada was born in", "Lima", "Ada", rephrases=("Ada is from",),
        ...                    locality_prompts=("Ada works as",))
        >>> shipped = Verifier.shipped(encoder)
        >>> adapter = learn(encoder, shipped, [fact], steps=1)
        >>> Verifier(encoder, adapter).threshold == shipped.threshold
        True
    """
    return train_verifier(
        encoder,
        TuningPairs(facts, Phrasebook.load()),
        steps=steps,
        lr=_LR,
        seed=seed,
        start=verifier.adapter,
    )


@dataclass(frozen=True)
class TuningPairs:
    """Draws from facts with rephrases and locality prompts, and from the phrasebook.

    Example:
        >>> fact = EditRequest("Ada was born in", "Lima", "Ada", rephrases=("Ada is from",),
        ...                    locality_prompts=("Ada works as",))
        >>> rng, pairs = random.Random(0), TuningPairs(60 * [fact], Phrasebook.load())
        >>> drawn = [pairs.draw(rng) for _ in range(40)]
        >>> sorted({(pair.prompt, pair.asks) for pair in drawn if pair.prompt.startswith("Ada ")})
        [('Ada is from', True), ('Ada was born in', True), ('Ada works as', False)]
    """

    facts: Sequence[EditRequest]
    book: Phrasebook

    def draw(self, rng: random.Random) -> Pair:
        """A pair of a prompt and a fact."""
        if rng.random() >= min(_OWN, len(self.facts) / _FEW):
            return self.book.draw(rng)
        fact = rng.choice(self.facts)
        text = fact_text(fact)
        if rng.random() < _REPHRASED:
            text = f"{rng.choice(fact.rephrases)} {fact.target_new}"
        if rng.random() < _ASKS:
            return Pair(rng.choice((fact.prompt, *fact.rephrases)), text, True, "own")
        return Pair(rng.choice(fact.locality_prompts), text, False, "own")
