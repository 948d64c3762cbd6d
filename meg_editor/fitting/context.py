"""What the stages of one fit share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.fitting.tuning_facts import Facts, TuningFacts
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore, CacheStore, digest
from meg_editor.runtime.processes import Processes


@dataclass(frozen=True)
class FitContext:
    """What all stages of one fit share.

    Attributes:
        spec: the neuron's place in `model`.
        edits: the N facts.
        pseudo: facts with rephrases, none of them edited.
        calibration: further facts with rephrases and locality prompts, none of them edited.
        store: where finished stages are kept.
        prepared: where those are kept which depend on no edit, for every later fit.
        processes: who shares the work.
    """

    model: CausalLM
    tokenizer: Tokenizer
    spec: NeuronSpec
    edits: Sequence[EditRequest]
    pseudo: TuningFacts
    calibration: TuningFacts
    hparams: MeGHyperParams
    runtime: RuntimeConfig
    store: ArtifactStore
    prepared: ArtifactStore
    processes: Processes

    @classmethod
    def of(
        cls,
        model: CausalLM,
        tokenizer: Tokenizer,
        edits: Sequence[EditRequest],
        hparams: MeGHyperParams,
        pseudo: Facts | None = None,
        calibration: Facts | None = None,
        runtime: RuntimeConfig | None = None,
        store: ArtifactStore | None = None,
        processes: Processes | None = None,
    ) -> FitContext:
        """The context of a fit, whose arguments these are; the layer is chosen."""
        if pseudo is None or calibration is None:
            standard = standard_facts()
            pseudo = standard[0] if pseudo is None else pseudo
            calibration = standard[1] if calibration is None else calibration
        edited = {edit.key for edit in edits}
        spec = NeuronSpec.from_hparams(model, hparams)
        return cls(
            model,
            tokenizer,
            spec,
            edits,
            TuningFacts.of(pseudo, "pseudo").without(edited),
            TuningFacts.of(calibration, "calibration").without(edited),
            hparams.changed(layers=[spec.layer]),
            runtime or RuntimeConfig(),
            store or ArtifactStore(),
            CacheStore("prepared"),
            processes or Processes(),
        )

    @property
    def background(self) -> list[str]:
        """Prompts which are not edited."""
        return [fact.prompt for fact in self.pseudo]

    @cached_property
    def model_key(self) -> list[Any]:
        """What identifies the LM in a key, and how its answers end."""
        generation = getattr(self.model, "generation_config", None)
        template = getattr(self.tokenizer, "chat_template", None)
        return [
            fingerprint(self.model),
            str(self.model.dtype),
            self.spec.to_dict(),
            config_key(self.model.config),
            None if generation is None else config_key(generation),
            self.tokenizer.eos_token_id,
            self.runtime.collection_bfloat16,
            *([template] if template else []),  # facts are fitted in it
        ]


def standard_facts() -> tuple[TuningFacts, TuningFacts]:
    """Facts of the reference world which tune and which calibrate.

    Example:
        >>> [len(facts) for facts in standard_facts()]
        [800, 400]
    """
    from meg_editor.data.world.facts import load_world
    from meg_editor.data.world.requests import calibration_requests, pseudo_requests

    world = load_world()
    return (
        TuningFacts(pseudo_requests(world), standard=True),
        TuningFacts(calibration_requests(world), standard=True),
    )


def config_key(config: Any) -> str:
    """Digest of a config of transformers, without where it came from."""
    origin = ("_name_or_path", "_commit_hash", "transformers_version")
    return digest({key: v for key, v in config.to_dict().items() if key not in origin})
