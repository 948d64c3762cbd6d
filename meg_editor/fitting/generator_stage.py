"""Stage 4: the weight generator (section 4.1 c.2)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from meg_editor.collection.collect import Collection
from meg_editor.fitting.context import FitContext
from meg_editor.fitting.stage import Stage, tensor_key
from meg_editor.fitting.tuning_facts import tokens_of
from meg_editor.generators import GENERATORS, FittableGenerator
from meg_editor.generators.auto import bank_bytes, dit_bytes, smallest
from meg_editor.lm.answers import answers_with, says
from meg_editor.lm.devices import input_device
from meg_editor.lm.tokens import max_target_length
from meg_editor.requests.prompts import in_template
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import Artifact, Tensors

_LOG = logging.getLogger(__name__)
_ROWS = 1024  # neurons generated at once


class GeneratorStage(Stage):
    """Trains the generator, or stores the neurons.

    With `generator: auto` a DiT is trained only where it is smaller than the stored neurons, and
    kept only if each fact gets the same answer as with its stored neuron.

    Args:
        encoder: the tuned one; `encoder_key` is its key.
        anchors: (N, E) embeddings of the edited queries.
    """

    name = "generator"
    settings = (
        "generator",
        "generator_conditioning",
        "generator_width",
        "generator_depth",
        "generator_patch_size",
        "generator_dropout",
        "generator_scale",
        "generator_epochs",
        "generator_steps",
        "generator_lr",
        "generator_ema",
        "generator_zero_augmentation",
        "diffusion_prediction",
        "sampling_steps",
        "prompt_template",
        "seed",
    )
    together = True

    def __init__(
        self,
        context: FitContext,
        encoder: TextEncoder,
        encoder_key: str,
        anchors: Tensor,
        collection: Collection,
    ) -> None:
        super().__init__(context)
        self.encoder, self.encoder_key = encoder, encoder_key
        self.anchors, self.collection = anchors.float(), collection
        self.sizes = (encoder.dimension, context.spec.size, len(context.edits))
        self.kind: str = self.hparams.generator
        if self.kind == "auto":
            self.kind = smallest(self.hparams, *self.sizes)

    def inputs(self) -> list[Any]:
        c = self.context
        return [
            self.encoder_key,
            tensor_key(self.collection.neurons),
            self.collection.success.tolist(),
            [[edit.prompt, edit.target_new] for edit in c.edits],
            c.background if self.hparams.generator_zero_augmentation else [],
            [*c.model_key, tokens_of(c.tokenizer, c.edits)]
            if self.hparams.generator == "auto" and self.kind == "dit"
            else [],
        ]

    def compute(self) -> Tensors:
        tensors = self._fit(self.kind)
        if self.hparams.generator == "auto" and self.kind == "dit":
            lost = self.context.processes.once(lambda: self._lost(tensors))
            if lost:
                _LOG.warning(
                    "generator: auto stores the neurons (%d bytes): the trained DiT (%d bytes) "
                    "answers %d of %d facts otherwise",
                    *(bank_bytes(*self.sizes), dit_bytes(self.hparams, *self.sizes[:2])),
                    *(lost, len(self.context.edits)),
                )
                tensors = self._fit("bank")
        return tensors

    def fitted(self, artifact: Artifact) -> tuple[str, FittableGenerator]:
        """The kind of a result ("bank", "mlp" or "dit"), and the generator."""
        kind = self.kind
        if self.hparams.generator == "auto" and "neurons" in artifact.tensors:
            kind = "bank"
        generator = self._build(kind, full=True)
        generator.load_state_dict(artifact.tensors)
        return kind, generator

    def _build(self, kind: str, full: bool = False) -> FittableGenerator:
        hparams = self.context.hparams if full else self.hparams
        generator = GENERATORS[kind].build(hparams, *self.sizes)
        return generator.to(input_device(self.context.model))

    def _fit(self, kind: str) -> Tensors:
        c = self.context
        generator = self._build(kind)
        irrelevant = None
        if self.hparams.generator_zero_augmentation:
            irrelevant = self.encoder.encode(c.background)
        neurons = self.collection.neurons.to(self.anchors.device)
        generator.fit(self.anchors, neurons, irrelevant, self.hparams.seed, c.processes)
        return generator.state_dict()

    def _lost(self, tensors: Tensors) -> int:
        """How many facts are answered with their target by the stored neuron alone."""
        c = self.context
        generator = self._build("dit")
        generator.load_state_dict(tensors)
        template = self.hparams.prompt_template
        rows = self.collection.success.nonzero().flatten().tolist()
        if not rows:
            return 0
        answers = answers_with(
            c.model,
            c.tokenizer,
            c.spec,
            torch.cat([generator.generate(part) for part in self.anchors[rows].split(_ROWS)]),
            [in_template(template, c.edits[row].prompt) for row in rows],
            max_target_length(c.tokenizer, c.edits),
        )
        return sum(
            not says(answer, c.edits[row].target_new)
            for row, answer in zip(rows, answers, strict=True)
        )
