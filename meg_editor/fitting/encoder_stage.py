"""Stage 1: tune the text encoder on pseudo-knowledge (section 4.1 a)."""

from __future__ import annotations

import copy
import logging
from typing import Any

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.context import FitContext, config_key
from meg_editor.fitting.stage import Stage
from meg_editor.lm.devices import input_device
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.reference import portable_model_name, resolve_model_name
from meg_editor.lm.sources import OURS
from meg_editor.routing.encoder import TextEncoder, tune_encoder
from meg_editor.runtime.artifacts import Artifact, Tensors

_LOG = logging.getLogger(__name__)


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
        self.encoder = copy.deepcopy(encoder).to(input_device(context.model))

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


def load_encoder(hparams: MeGHyperParams, model: CausalLM) -> TextEncoder:
    """The text encoder of `encoder_name`; warns of the reference encoder beside another model.

    Raises:
        OSError: there is none of that name, or it cannot be loaded.
        ValueError: a "meg_editor:…" name that is not one of ours.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> load_encoder(hparams, load_model(hparams)[0]).dimension
        256
    """
    name = portable_model_name(model.config.name_or_path or hparams.model_name)
    if hparams.encoder_name.startswith(OURS) and not name.startswith(OURS):
        _LOG.warning(
            "encoder_name: %s knows the sentences of the reference world, and the model is %s: its "
            "edits will be missed in other words. The presets are those of the reference model; "
            "MeGHyperParams(model_name=...) is for all others",
            hparams.encoder_name,
            name,
        )
    return TextEncoder.from_pretrained(resolve_model_name(hparams.encoder_name))
