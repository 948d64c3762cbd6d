"""Stage 1: tune the text encoder on pseudo-knowledge (section 4.1 a)."""

from __future__ import annotations

import copy
from typing import Any

from meg_editor.fitting.context import FitContext, config_key
from meg_editor.fitting.stage import Stage
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.routing.encoder import TextEncoder, tune_encoder
from meg_editor.runtime.artifacts import Artifact, Tensors


class EncoderStage(Stage):
    """Tunes a copy of `encoder`."""

    name = "encoder"
    settings = (
        "encoder_tuning",
        "encoder_tuned_layers",
        "encoder_hard_negatives",
        "encoder_steps",
        "encoder_lr",
        "seed",
    )

    def __init__(self, context: FitContext, encoder: TextEncoder) -> None:
        super().__init__(context)
        h = self.hparams
        self.reusable = h.encoder_tuning != "frozen" and h.encoder_steps > 0
        self.given = encoder
        self.encoder = copy.deepcopy(encoder).to(context.model.device)

    def inputs(self) -> list[Any]:
        given, tokenizer = self.given, self.given.tokenizer
        return [
            fingerprint(given),
            config_key(given.model.config),
            given.pooling,
            [tokenizer.truncation_side, tokenizer.model_max_length],
            self.context.pseudo.digest,
            self.context.pseudo.tokens_digest(tokenizer),
        ]

    def compute(self) -> Tensors:
        if not self.reusable:
            return {}
        h = self.hparams
        tune_encoder(
            self.encoder,
            self.context.pseudo,
            objective=h.encoder_tuning,
            tuned_layers=h.encoder_tuned_layers,
            hard_negatives=h.encoder_hard_negatives,
            steps=h.encoder_steps,
            lr=h.encoder_lr,
            seed=h.seed,
        )
        return self.encoder.state_dict()

    def tuned(self, artifact: Artifact) -> TextEncoder:
        """The encoder of a result."""
        if artifact.tensors:
            self.encoder.load_state_dict(artifact.tensors)
        return self.encoder
