"""Every setting of MeG in one flat dataclass, in EasyEdit's spelling, grouped by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any, ClassVar, Literal

from meg_editor.config.base_editor import BaseEditorFields
from meg_editor.config.flat_yaml import parse_flat_yaml
from meg_editor.config.input_files import short_repr, type_and_repr
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.config.settings import HParamsError, setting

_FOUND = "it is gone: found from the model's FFN"
_FIXED = "it is gone: {} always"
_RIDGE = "it is gone with the ridge memory; generator: auto stores neurons, or trains a DiT"


@dataclass
class MeGHyperParams(BaseEditorFields):
    """Hyper-parameters of the four stages; defaults are for real models.

    Raises:
        HParamsError: on construction, for a value of the wrong type or out of its range.

    Example:
        >>> hparams = MeGHyperParams.preset("default", collection_steps=30)
        >>> hparams.gate, hparams.generator, hparams.collection_steps
        ('verified', 'auto', 30)
        >>> MeGHyperParams.explain("collection_margin")
        'it is collection_loss_threshold now'
    """

    # The LM and the place of the neuron
    layers: list[int] | None = setting(
        None,
        "The decoder layer that gets the neuron: one 0-based index; null: a little before the "
        "middle. `meg-editor layers` measures which is best (paper: 29 Phi-2, 9 GPT-J, 14 "
        "Llama-3).",
    )
    mlp_module_tmp: str | None = setting(
        None, "Name of the FFN module with {} for the layer; null: found. Set it if that fails."
    )
    prompt_template: str = setting(
        "{}", "Text around every query before the LM sees it; {} is the query."
    )
    seed: int = setting(0, "Seed of every random choice.", ge=-(2**63), lt=2**63)

    # Stage 1, text encoder (section 4.1 a)
    encoder_name: str = setting(
        "sentence-transformers/all-MiniLM-L6-v2",
        "Hub id or directory of the text encoder. A sentence encoder needs no tuning (paper: "
        "bert-base-uncased).",
    )
    encoder_tuning: Literal["infonce", "mse", "frozen"] = setting(
        "frozen",
        "Objective which tunes the encoder on paraphrases; frozen: none, for a sentence encoder "
        "(paper: infonce; table 4).",
    )
    encoder_tuned_layers: Literal["last", "all"] = setting(
        "all", "Layers of the encoder that are tuned (paper: last)."
    )
    encoder_hard_negatives: bool = setting(
        True, "Whether locality prompts are negatives beside the batch's own (paper: false)."
    )
    encoder_steps: int = setting(
        100, "Tuning steps of 64 facts. 0 keeps the encoder as it is.", ge=0, lt=10**7
    )
    encoder_lr: float = setting(1e-4, "AdamW learning rate of tuning (paper: 1e-4).", ge=0, lt=1e4)

    # Stage 2, gate (section 4.1 b)
    gate: Literal["verified", "similarity", "familiarity"] = setting(
        "verified",
        "How a prompt is recognised as an edit: by a verifier, which reads it together with the "
        "edits it resembles, where one is shipped for the encoder; by similarity alone; or by the "
        "entropy of the Familiarity Network (paper).",
    )
    gate_threshold: float | None = setting(
        None,
        "Lowest probability of an edit to the verifier, lowest similarity where there is none, or "
        "highest entropy ε in nats (paper: ε = 0.1 to 0.7). null: the one shipped with the "
        "verifier (0.2, or 0.1 for the reference encoder), else calibrated on held-out facts. "
        "Raise a probability or similarity if other questions get edited answers.",
    )
    verifier_steps: int = setting(
        200,
        "Steps in which the shipped verifier learns the phrasings of your tuning facts (`pseudo`: "
        "those with rephrases and locality prompts); without such facts it stays as it is.",
        ge=0,
        lt=10**7,
    )
    gate_calibration: Literal["auto", "quick", "thorough"] = setting(
        "auto",
        "How a threshold is calibrated: thorough generates answers (paper), quick looks at routing "
        "alone; auto: quick while the edits are at most half as many as the calibration facts.",
    )
    gate_name_weight: float = setting(
        0.4,
        "Weight of the subject's name in the similarity, 0 to below 1 (paper: 0).",
        ge=0,
        lt=1,
    )
    gate_state_weight: float | None = setting(
        None,
        "Weight of the LM's hidden states in the similarity, 0 to below 1 (paper: 0); null: "
        "calibrated with the threshold, 0 if that is given.",
        ge=0,
        lt=1,
    )
    familiarity_epochs: int = setting(
        2000,
        "Most epochs of the Familiarity Network (paper: thousands, to convergence).",
        ge=0,
        lt=10**7,
    )

    routing: Literal["prompt", "decoding"] = setting(
        "prompt",
        "prompt: a prompt is routed before its first token (paper); decoding: its answer too while "
        "`generate` writes it: a text that gets to an edited fact goes on with the edit. Needs a "
        "verifier.",
    )

    # Stage 3, collection (section 4.1 c.1)
    collection_optimizer: Literal["scaled", "sgd"] = setting(
        "scaled",
        "scaled: steps in units of the model's own activations, as long as the loss asks for; "
        "sgd: plain (paper), in raw weights.",
    )
    collection_lr: float = setting(
        3.0,
        "With the scaled optimizer a multiple of Polyak's step, which suits every model; with sgd "
        "the learning rate, which depends on the LM (paper: 0.01 Phi-2, 0.07 GPT-J, 0.02 Llama-3).",
        ge=0,
        lt=1e4,
    )
    collection_steps: int = setting(
        60,
        "Most SGD steps for a fact (paper: 80 Phi-2, 500 GPT-J, 50 Llama-3).",
        ge=1,
        lt=10**7,
    )
    collection_schedule: Literal["constant", "cosine"] = setting(
        "constant", "Learning-rate schedule of collection (paper: cosine for GPT-J)."
    )
    collection_contexts: int | None = setting(
        None,
        "Contexts each fact is fitted in: the bare prompt, after other text, in the model's chat "
        "template, and so on. More generalise better and take longer; null: 6, without a chat "
        "template 5 (paper: 1).",
        ge=1,
        lt=1000,
    )
    collection_loss_threshold: float = setting(
        0.02, "Mean loss in nats below which a fact has converged.", ge=0
    )

    # Stage 4, weight generator (section 4.1 c.2)
    generator: Literal["auto", "bank", "mlp", "dit"] = setting(
        "auto",
        "What produces a neuron: bank stores it, mlp and dit (paper) generate it; auto: bank while "
        "it is the smaller one, then dit if it gives the same answers.",
    )
    generator_anchored: bool = setting(
        True,
        "Whether a query is snapped to the nearest edited query before generation (paper: false).",
    )
    generator_conditioning: Literal["time", "patches"] = setting(
        "patches",
        "How the query enters the DiT: added to the time step (paper), or to every patch too, "
        "which learns faster.",
    )
    generator_width: int = setting(
        768, "Hidden width, in steps of 64 (paper: 768).", ge=1, lt=2**17
    )
    generator_depth: int = setting(12, "Blocks (paper: 12).", ge=1, lt=1000)
    generator_patch_size: int = setting(
        100, "Neuron weights in a patch of the DiT (paper: 100).", ge=1, lt=2**20
    )
    generator_dropout: float = setting(0.0, "Dropout in training (paper: 0.2).", ge=0, lt=1)
    generator_scale: float | None = setting(
        None,
        "Divisor of the neurons in training (paper: 0.01); null: whitened over the edits.",
        ge=1e-12,
    )
    generator_epochs: int = setting(
        200, "Most passes over the edits (paper: tens of thousands).", ge=1, lt=10**7
    )
    generator_steps: int = setting(
        500, "Fewest training steps: few edits have few batches in an epoch.", ge=1, lt=10**8
    )
    generator_lr: float = setting(
        1e-3, "AdamW learning rate of training (paper: 1e-4).", ge=0, lt=1e4
    )
    generator_ema: float = setting(
        0.99, "Decay of the averaged weights; 0: no average (paper).", ge=0, lt=1
    )
    generator_zero_augmentation: float = setting(
        0.0,
        "Share of other queries in a batch, which get the zero neuron (DA, A.3; paper: table 15).",
        ge=0,
        lt=1000,
    )
    diffusion_prediction: Literal["v_prediction", "sample"] = setting(
        "sample", "What the DiT predicts: the velocity (paper, eq. 7) or the clean neuron."
    )
    sampling_steps: int = setting(
        4, "Deterministic sampling steps of the DiT, at most 1000 (paper: 50).", ge=1, lt=1001
    )

    listed: ClassVar[str] = "`meg-editor settings` lists all"
    former: ClassVar[Mapping[str, str]] = {
        "collection_clip": "it is gone: collection_optimizer: scaled limits its steps itself",
        "collection_margin": "it is collection_loss_threshold now",
        "generator_condition": "it is generator_conditioning now: time or patches",
        "generator_scaling": "it is generator_scale now: a divisor, or null for whitened neurons",
        "generator_features": _RIDGE,
        "generator_refine": _RIDGE,
        "generator_heads": _FIXED.format("generator_width / 64 heads"),
        "generator_batch_size": _FIXED.format("256 facts in a training step"),
        "generator_tolerance": _FIXED.format("training ends at 0.1 standard deviations"),
        "generator_condition_noise": "it is gone: anchored queries need no noise",
        "diffusion_train_timesteps": _FIXED.format("1000 time steps"),
        "sampler": _FIXED.format("DDIM"),
        "encoder_pooling": "it is gone: read from the encoder's own files, else CLS",
        "encoder_batch_size": _FIXED.format("64 facts in a step"),
        "encoder_temperature": _FIXED.format("a temperature of 0.05"),
        "familiarity_classes": _FIXED.format("K = 10 classes (paper)"),
        "familiarity_blocks": _FIXED.format("5 blocks (paper)"),
        "familiarity_dropout": _FIXED.format("0.1 (paper)"),
        "familiarity_lr": _FIXED.format("1e-3 (paper)"),
        "neuron_activation": _FOUND,
        "neuron_bias": _FOUND,
        "collection_retries": _FIXED.format("2 retries at half the rate"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alg_name != "MeG":
            raise HParamsError(f"alg_name: expected 'MeG', got {short_repr(self.alg_name)}")
        if self.layers is not None and len(self.layers) != 1:
            raise HParamsError(
                f"layers: expected one layer index such as [5] (MeG adds one neuron in one layer), "
                f"got {short_repr(self.layers)}"
            )
        if self.prompt_template.count("{}") != 1:
            raise HParamsError(
                f"prompt_template: expected exactly one {{}}, got "
                f"{short_repr(self.prompt_template)}"
            )
        if self.gate_name_weight + (self.gate_state_weight or 0) >= 1:
            raise HParamsError(
                f"gate_name_weight + gate_state_weight: expected less than 1, got "
                f"{self.gate_name_weight} + {self.gate_state_weight}"
            )
        if self.generator_width > 64 and self.generator_width % 64:
            raise HParamsError(
                f"generator_width: expected a multiple of 64 (the width of a head), got "
                f"{self.generator_width}"
            )
        if self.generator == "auto" and not self.generator_anchored:
            raise HParamsError(
                "generator: auto needs generator_anchored: true, since stored neurons are those of "
                "the edited queries; set generator: dit, mlp or bank"
            )

    @property
    def layer(self) -> int | None:
        """The 0-based decoder layer that gets the neuron; None: chosen from the model."""
        return self.layers[0] if self.layers else None

    @classmethod
    def explain(cls, key: str) -> str | None:
        """What became of a setting that is no longer here; None for one that never was."""
        if key in {entry.name for entry in fields(RuntimeConfig)}:
            return f"it is a run-time choice now: pass runtime=RuntimeConfig({key}=...)"
        return cls.former.get(key)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MeGHyperParams:
        """A shipped preset: "default", our choice, or "paper", the method as published.

        Both are those of the reference model, of its size and with its text encoder. For another
        model, `MeGHyperParams(model_name=...)` chooses what follows from it.

        Raises:
            HParamsError: no preset of that name; the message lists those there are.
        """
        folder = files(__package__) / "presets"
        entry = folder / f"{name}.yaml"
        if not entry.is_file():
            names = sorted(e.name[:-5] for e in folder.iterdir() if e.name.endswith(".yaml"))
            raise HParamsError(f"no preset {short_repr(name)}; there are {', '.join(names)}")
        return cls.from_dict({**parse_flat_yaml(entry.read_text("utf-8")), **changes})


def check_hparams(hparams: object) -> None:
    """Refuse what are no settings of MeG.

    Raises:
        TypeError: a name, a path, or those of another method.

    Example:
        >>> check_hparams(MeGHyperParams.preset("default"))
    """
    if not isinstance(hparams, MeGHyperParams):
        raise TypeError(
            f"hparams: expected MeGHyperParams, got {type_and_repr(hparams)}; make "
            "them with MeGHyperParams(model_name=...), MeGHyperParams.preset(name), or "
            "MeGHyperParams.from_hparams(path)"
        )
