"""Stage 3: fit the gate and choose its threshold on held-out facts (section 4.1 b, A.5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from meg_editor.fitting.calibration import calibrate_on_held_out
from meg_editor.fitting.collection_stage import COLLECTION_SETTINGS
from meg_editor.fitting.stage import FitContext, Stage, facts_key, tensor_key
from meg_editor.requests.prompts import PromptReader
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import GATES, Calibration, Gate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.runtime.artifacts import Artifact, Tensors


class GateStage(Stage):
    """Fits the gate.

    Args:
        encoder: the tuned one; `encoder_key` is its key.
        neurons: (N, P) collected neurons.
    """

    name = "gate"
    label = "calibration"
    settings = (
        "gate",
        "gate_threshold",
        "gate_name_weight",
        "gate_state_weight",
        "familiarity_epochs",
        *COLLECTION_SETTINGS,
    )

    def __init__(
        self, context: FitContext, encoder: TextEncoder, encoder_key: str, neurons: Tensor
    ) -> None:
        super().__init__(context)
        self.encoder, self.encoder_key, self.neurons = encoder, encoder_key, neurons
        self.gate = self._build()
        # Few edits are not needed beside the pretended ones to calibrate on, and the similarity
        # gate learns nothing from them: every later fit gets the same gate.
        few = len(context.edits) <= len(context.calibration) // 2
        self.reusable = self.hparams.gate == "similarity" and few

    def _build(self) -> Gate:
        gate = GATES[self.hparams.gate].build(self.hparams, self.encoder.dimension)
        return gate.to(self.context.model.device)

    def inputs(self) -> list[Any]:
        c = self.context
        reader = PromptReader(c.tokenizer, self.hparams.prompt_template)
        states = HiddenStateReader(c.model, c.tokenizer, c.spec, reader)
        edits: list[Any]
        if self.reusable:
            edits = [sum(edit.subject is None for edit in c.edits) / len(c.edits)]
        else:
            prompts = [[edit.prompt, edit.subject] for edit in c.edits]
            edits = [tensor_key(self.neurons), prompts, c.tokens_key(c.edits)]
        return [
            c.model_key(),
            self.encoder_key,
            states.module,
            *edits,
            facts_key(c.calibration),
            c.tokens_key(c.calibration),
            c.background,
        ]

    def compute(self) -> Tensors:
        h = self.hparams
        sweep: Tensors = {}
        if h.gate_threshold is None:
            calibration = calibrate_on_held_out(
                self.context, h, self.encoder, self.gate, self.neurons
            )
            self.gate.threshold.fill_(calibration.threshold)
            sweep = calibration.to_tensors()
        self.gate.fit(self.encoder.encode([edit.prompt for edit in self.context.edits]), h.seed)
        return {**sweep, **{f"gate.{k}": value for k, value in self.gate.state_dict().items()}}

    def fitted(self, artifact: Artifact) -> tuple[Gate, Calibration | None]:
        """The gate of a result, and its calibration unless the threshold was given."""
        tensors = artifact.tensors
        self.gate.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("gate.")})
        return self.gate, Calibration.from_tensors(tensors)
