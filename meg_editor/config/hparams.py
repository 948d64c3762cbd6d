"""Every setting of MeG in one flat dataclass, in EasyEdit's spelling."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import yaml

from meg_editor.config.settings import FlatHyperParams, HParamsError, setting


@dataclass
class MeGHyperParams(FlatHyperParams):
    """Hyper-parameters of the four stages. Defaults are the `default` preset for real models.

    Raises:
        HParamsError: on construction, for a value of the wrong type or out of its range.
    """

    # EasyEdit's own
    model_name: str = setting("", "Hub id or local directory of the causal LM.")
    alg_name: str = setting("MeG", "Always MeG.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, or a CUDA index.")
    fp16: bool = setting(False, "Load the LM in float16.")
    model_parallel: bool = setting(False, "Spread the LM over all GPUs (device_map='auto').")
    batch_size: int = setting(1024, "Facts EasyEdit passes to one call.", ge=1)
    max_length: int = setting(128, "Longest prompt + target in tokens while fitting.", ge=1)
    layers: list[int] = setting([0], "The decoder layer which gets the neuron: one 0-based index.")
    mlp_module_tmp: str | None = setting(None, "FFN module with {} for the layer; null: found.")
    prompt_template: str = setting("{}", "What the LM sees of a query; {} is the query.")
    seed: int = setting(0, "Seed of every random choice.")
    evaluation_type: Literal["traditional", "LLM-judge", "generate-text"] | None = setting(
        None, "How EasyEdit's BaseEditor evaluates."
    )
    api_key: str | None = setting(None, "Of EasyEdit's LLM judge; null: exact match.")
    use_chat_template: bool = setting(False, "Whether EasyEdit evaluates in chat turns.")

    # Stage 1, text encoder (section 4.1 a)
    encoder_name: str = setting("bert-base-uncased", "Hub id or directory of the text encoder.")
    encoder_pooling: Literal["cls", "mean"] | None = setting(
        None, "Sentence embedding (paper: cls); null: the encoder's own, cls if it names none."
    )
    encoder_tuning: Literal["infonce", "mse", "frozen"] = setting(
        "infonce", "How the encoder is tuned on pseudo-knowledge (table 4)."
    )
    encoder_tuned_layers: Literal["last", "all"] = setting("all", "Paper: the last layer only.")
    encoder_hard_negatives: bool = setting(True, "Use locality prompts as extra negatives.")
    encoder_steps: int = setting(100, "Tuning steps.", ge=0)
    encoder_batch_size: int = setting(64, "Pseudo facts per step.", ge=1)
    encoder_lr: float = setting(1e-4, "AdamW learning rate.", ge=0)
    encoder_temperature: float = setting(0.05, "InfoNCE temperature τ (eq. 5).", ge=1e-3)

    # Stage 2, gate (section 4.1 b)
    gate: Literal["similarity", "familiarity"] = setting("similarity", "Is a query an edit?")
    gate_threshold: float | None = setting(
        None, "Least similarity, or entropy ε (eq. 10); null: calibrated on facts set aside for it."
    )
    gate_name_weight: float = setting(
        0.2, "Weight of the subject's name in the similarity (paper: 0).", ge=0, lt=1
    )
    gate_state_weight: float | None = setting(
        None,
        "Weight of the LM's own state in the similarity (paper: 0), the rest is the cosine; null: "
        "calibrated with the threshold, 0 if that is given.",
        ge=0,
        lt=1,
    )
    familiarity_classes: int = setting(10, "K random labels.", ge=1)
    familiarity_blocks: int = setting(5, "Residual FFN blocks.", ge=1)
    familiarity_dropout: float = setting(0.1, "Dropout in the blocks.", ge=0, lt=1)
    familiarity_lr: float = setting(1e-3, "AdamW learning rate.", ge=0)
    familiarity_epochs: int = setting(2000, "At most; training stops at convergence.", ge=0)

    # Stage 3, collection (section 4.1 c.1)
    neuron_activation: str | None = setting(None, "Activation of the neuron; null: found.")
    neuron_bias: bool | None = setting(None, "Whether the neuron has a bias; null: found.")
    collection_lr: float = setting(1.0, "SGD learning rate.", ge=0)
    collection_steps: int = setting(60, "SGD steps at most.", ge=1)
    collection_clip: float | None = setting(
        None,
        "Longest gradient of a fact, which longer ones are shortened to; a fact whose loss rises"
        " slows down. null: plain SGD.",
        ge=0,
    )
    collection_schedule: Literal["constant", "cosine"] = setting("constant", "Of the rate.")
    collection_contexts: int = setting(
        2, "Contexts per fact: the bare prompt and random others.", ge=1
    )
    collection_loss_threshold: float = setting(
        0.01, "A fact is finished below this loss (nats).", ge=0
    )
    collection_batch_size: int | None = setting(
        None, "Rows optimised at once, facts times contexts; null: as many as fit.", ge=1
    )
    collection_memory: float = setting(
        0.5, "Share of the free memory which they may take.", ge=0.01, lt=1
    )
    collection_shard_size: int = setting(
        1024, "Facts after which what was found is stored; a crash loses no more.", ge=1
    )
    collection_bfloat16: bool = setting(
        False, "Optimise under bfloat16 autocast, where the hardware knows it."
    )
    collection_retries: int = setting(
        2, "More rounds for facts that failed, at half the rate.", ge=0
    )

    # Stage 4, weight generator (section 4.1 c.2)
    generator: Literal["dit", "mlp", "bank"] = setting("dit", "What produces the neuron.")
    generator_anchored: bool = setting(True, "Snap a query to the nearest edited query first.")
    generator_width: int = setting(384, "Hidden width.", ge=1)
    generator_depth: int = setting(6, "Blocks.", ge=1)
    generator_conditioning: Literal["time", "patches", "recall"] | None = setting(
        None,
        "How z enters the DiT: with the time step (paper), at every patch too, or as the neuron "
        "recalled in closed form, of which it refines the rest; null: recall if anchored and "
        "trained on nothing but the edits, else patches.",
    )
    generator_features: int = setting(
        16384, "Random features which recall, at most; 1.25 per edit are made.", ge=1
    )
    generator_refine: bool | None = setting(
        None, "Whether a DiT refines what is recalled; null: where that misses the tolerance."
    )
    generator_heads: int = setting(6, "Attention heads of the DiT.", ge=1)
    generator_patch_size: int = setting(100, "Neuron values per DiT token.", ge=1)
    generator_dropout: float = setting(0.0, "Dropout.", ge=0, lt=1)
    generator_scaling: Literal["constant", "whiten"] = setting(
        "whiten", "Targets divided by generator_scale (paper), or whitened over the edits."
    )
    generator_scale: float = setting(0.01, "Divisor of the targets: their typical size.", ge=1e-12)
    generator_epochs: int = setting(200, "Passes over the edits, at most.", ge=1)
    generator_steps: int = setting(500, "At least so many steps, for few edits.", ge=1)
    generator_tolerance: float = setting(
        0.1,
        "Training ends early at this error, in standard deviations of the scaled neurons.",
        ge=0,
    )
    generator_batch_size: int = setting(256, "Facts per training step.", ge=1)
    generator_lr: float = setting(1e-3, "AdamW learning rate.", ge=0)
    generator_ema: float = setting(
        0.99, "Decay of the averaged weights; 0: no average.", ge=0, lt=1
    )
    generator_condition_noise: float = setting(
        0.0, "Noise on z while training, in units of |z|.", ge=0
    )
    generator_zero_augmentation: float = setting(
        0.0,
        "Share of pseudo-irrelevant queries taught to give the zero neuron (DA, A.3).",
        ge=0,
    )
    diffusion_prediction: Literal["v_prediction", "sample"] = setting("sample", "Eq. 7, or x0.")
    diffusion_train_timesteps: int = setting(1000, "Length of the noise schedule.", ge=21)
    sampler: Literal["ddim", "dpm"] = setting("ddim", "Deterministic sampler.")
    sampling_steps: int = setting(4, "Sampling steps (paper: 50).", ge=1)
    generator_compile: bool = setting(
        False, "Compile the DiT for answering (on a GPU with CUDA graphs); the first answer waits."
    )
    neuron_cache: int = setting(
        1024, "Generated neurons kept, those used last; needs generator_anchored.", ge=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alg_name != "MeG":
            raise HParamsError(f"alg_name: expected 'MeG', got {self.alg_name!r}")
        if len(self.layers) != 1:
            raise HParamsError(
                f"layers: expected one layer index such as [5] (MeG adds one neuron in one layer), "
                f"got {self.layers}"
            )
        if self.prompt_template.count("{}") != 1:
            raise HParamsError(
                f"prompt_template: expected exactly one {{}}, got {self.prompt_template!r}"
            )
        if self.gate_name_weight + (self.gate_state_weight or 0) >= 1:
            raise HParamsError(
                f"gate_name_weight + gate_state_weight: expected less than 1, got "
                f"{self.gate_name_weight} + {self.gate_state_weight}"
            )
        if self.generator_conditioning == "recall" and not self.generator_anchored:
            raise HParamsError(
                "generator_conditioning: recall knows the very embeddings of the edits only: set "
                "generator_anchored: true, or generator_conditioning: patches"
            )
        if self.generator_refine is False and self.conditioning != "recall":
            raise HParamsError(
                f"generator_refine: false leaves nothing to generate with under "
                f"generator_conditioning: {self.conditioning}; expected recall"
            )
        if self.sampling_steps > self.diffusion_train_timesteps:
            raise HParamsError(
                f"sampling_steps: expected at most diffusion_train_timesteps "
                f"({self.diffusion_train_timesteps}), got {self.sampling_steps}"
            )

    @property
    def layer(self) -> int:
        """The 0-based decoder layer which gets the neuron."""
        return self.layers[0]

    @property
    def conditioning(self) -> Literal["time", "patches", "recall"]:
        """`generator_conditioning`, or what null stands for."""
        if self.generator_conditioning is not None:
            return self.generator_conditioning
        augmented = self.generator_zero_augmentation or self.generator_condition_noise
        return "recall" if self.generator_anchored and not augmented else "patches"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MeGHyperParams:
        """A shipped preset: "default", our choice, or "paper", the method as published.

        Raises:
            HParamsError: no preset of that name; the message lists those there are.
        """
        folder = files(__package__) / "presets"
        entry = folder / f"{name}.yaml"
        if not entry.is_file():
            names = sorted(e.name[:-5] for e in folder.iterdir() if e.name.endswith(".yaml"))
            raise HParamsError(f"no preset {name!r}; there are {', '.join(names)}")
        return cls.from_dict({**yaml.safe_load(entry.read_text("utf-8")), **changes})
