"""Stage 2: fit the gate and choose its threshold on held-out facts (section 4.1 b, A.5)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from meg_editor.fitting.calibration import calibrate_on_held_out, state_weights
from meg_editor.fitting.collection_stage import COLLECTION_SETTINGS
from meg_editor.fitting.context import FitContext
from meg_editor.fitting.stage import Stage, tensor_key
from meg_editor.fitting.tuning_facts import tokens_of
from meg_editor.lm.devices import input_device
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.spans import surface
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import GATES, Calibration, Gate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.verifier import Verifier
from meg_editor.runtime.artifacts import Artifact, Tensors

_ROUTING_SETTINGS = (
    "gate",
    "gate_threshold",
    "gate_name_weight",
    "gate_state_weight",
    "familiarity_epochs",
    "prompt_template",
    "seed",
)


class FittedGate(NamedTuple):
    """Result of the stage.

    Attributes:
        calibration: None if the threshold was given.
        usual: mean and deviation (2, D) of hidden-state features, if they count in the score.
    """

    gate: Gate
    calibration: Calibration | None
    usual: Tensor | None


class GateStage(Stage):
    """Fits the gate.

    Args:
        encoder: the tuned one; `encoder_key` is its key.
        neurons: (N, P) collected neurons.
        nameless: share of edits without a subject, in [0, 1].
        verifier: decides, with the verified gate; None: there is none for the encoder.

    Attributes:
        calibrated: whether the threshold is chosen on held-out facts.
        thorough: whether that looks at answers.
        kind: the gate: "similarity" where there is no verifier for the encoder.
        most_edits: up to which the result is the same for all fits.
    """

    name = "gate"
    label = "calibration"

    def __init__(
        self,
        context: FitContext,
        encoder: TextEncoder,
        encoder_key: str,
        neurons: Tensor,
        nameless: float,
        verifier: Verifier | None = None,
    ) -> None:
        h = context.hparams
        if h.gate == "verified" and verifier is None:
            h = h.changed(gate="similarity")
        if verifier:  # it decides: the gate only retrieves
            h = h.changed(gate_threshold=verifier.similarity)
        # Few edits are not needed beside the pretended ones to calibrate on, and the similarity
        # gate learns nothing from them: every later fit gets the same gate.
        self.most_edits = len(context.calibration) // 2
        few = h.gate != "familiarity" and len(context.edits) <= self.most_edits
        self.kind = h.gate
        self.calibrated = h.gate_threshold is None
        self.thorough = self.calibrated and (
            h.gate_calibration == "thorough" or (h.gate_calibration == "auto" and not few)
        )
        self.settings = (*_ROUTING_SETTINGS, *(COLLECTION_SETTINGS if self.thorough else ()))
        super().__init__(context)
        self.encoder, self.encoder_key, self.neurons = encoder, encoder_key, neurons
        self.reusable = few and (self.calibrated or bool(h.gate_state_weight))
        # In quarters, so that other facts find it again.
        self.nameless = round(4 * nameless) / 4 if few else nameless
        self.gate = GATES[h.gate].build(h, encoder.dimension).to(input_device(context.model))
        reader = PromptReader(context.tokenizer, h.prompt_template)
        self.states = HiddenStateReader(context.model, context.tokenizer, context.spec, reader)

    def inputs(self) -> list[Any]:
        c = self.context
        edits: list[Any] = []
        if not self.reusable:
            prompts = [[edit.prompt, edit.subject] for edit in c.edits]
            neurons = tensor_key(self.neurons) if self.thorough else None
            edits = [neurons, prompts, tokens_of(c.tokenizer, c.edits)]
        return [
            c.model_key,
            self.encoder_key,
            self.states.module,
            [self.thorough, self.nameless] if self.calibrated else [],
            *edits,
            c.calibration.digest,
            c.calibration.tokens_digest(c.tokenizer),
            c.background,
        ]

    def compute(self) -> Tensors:
        h, result = self.hparams, Tensors()
        weight = h.gate_state_weight
        counts = max(state_weights(h)) if self.calibrated else weight
        usual = self.states.usual(self.context.background) if counts else None
        if self.calibrated:
            calibration = calibrate_on_held_out(
                self.context,
                h,
                self.encoder,
                self.gate,
                self.neurons if self.thorough else None,
                self.nameless,
                usual,
            )
            self.gate.threshold.fill_(calibration.threshold)
            result, weight = calibration.to_tensors(), calibration.state_weight
        if weight and usual is not None:
            result["usual"] = usual
        edited = [surface(edit.prompt) for edit in self.context.edits]  # as they are looked for
        self.gate.fit(self.encoder.encode(edited), h.seed)
        return {**result, **{f"gate.{k}": value for k, value in self.gate.state_dict().items()}}

    def fitted(self, artifact: Artifact) -> FittedGate:
        """The gate of a result."""
        tensors = artifact.tensors
        self.gate.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("gate.")})
        return FittedGate(self.gate, Calibration.from_tensors(tensors), tensors.get("usual"))
