"""Every setting of MeG in one flat dataclass, in EasyEdit's spelling."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml


class HParamsError(ValueError):
    """A setting that does not exist or cannot have the given value."""


def _setting(
    default: Any, help: str, *, least: float | None = None, below: float | None = None
) -> Any:
    """A field; a number in it is at least `least` and less than `below`."""
    metadata = {"help": help, "least": least, "below": below}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class MeGHyperParams:
    """Hyper-parameters of the four stages. Defaults are the `default` preset for real models.

    Raises:
        HParamsError: on construction, for a value of the wrong type or out of its range.
    """

    # EasyEdit's own
    model_name: str = _setting("", "Hub id or local directory of the causal LM.")
    alg_name: str = _setting("MeG", "Always MeG.")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, or a CUDA index.")
    fp16: bool = _setting(False, "Load the LM in float16.")
    model_parallel: bool = _setting(False, "Spread the LM over all GPUs (device_map='auto').")
    batch_size: int = _setting(1024, "Facts EasyEdit passes to one call.", least=1)
    max_length: int = _setting(128, "Longest prompt + target in tokens while fitting.", least=1)
    layers: list[int] = _setting([0], "The decoder layer which gets the neuron: one 0-based index.")
    mlp_module_tmp: str | None = _setting(None, "FFN module with {} for the layer; null: found.")
    prompt_template: str = _setting("{}", "What the LM sees of a query; {} is the query.")
    seed: int = _setting(0, "Seed of every random choice.")
    evaluation_type: Literal["traditional", "LLM-judge", "generate-text"] | None = _setting(
        None, "How EasyEdit's BaseEditor evaluates."
    )
    api_key: str | None = _setting(None, "Of EasyEdit's LLM judge; null: exact match.")
    use_chat_template: bool = _setting(False, "Whether EasyEdit evaluates in chat turns.")

    # Stage 1, text encoder (section 4.1 a)
    encoder_name: str = _setting("bert-base-uncased", "Hub id or directory of the text encoder.")
    encoder_pooling: Literal["cls", "mean"] | None = _setting(
        None, "Sentence embedding (paper: cls); null: the encoder's own, cls if it names none."
    )
    encoder_tuning: Literal["infonce", "mse", "frozen"] = _setting(
        "infonce", "How the encoder is tuned on pseudo-knowledge (table 4)."
    )
    encoder_tuned_layers: Literal["last", "all"] = _setting("all", "Paper: the last layer only.")
    encoder_hard_negatives: bool = _setting(True, "Use locality prompts as extra negatives.")
    encoder_steps: int = _setting(100, "Tuning steps.", least=0)
    encoder_batch_size: int = _setting(64, "Pseudo facts per step.", least=1)
    encoder_lr: float = _setting(1e-4, "AdamW learning rate.", least=0)
    encoder_temperature: float = _setting(0.05, "InfoNCE temperature τ (eq. 5).", least=1e-3)

    # Stage 2, gate (section 4.1 b)
    gate: Literal["similarity", "familiarity"] = _setting("similarity", "Is a query an edit?")
    gate_threshold: float | None = _setting(
        None, "Least similarity, or entropy ε (eq. 10); null: calibrated on facts set aside for it."
    )
    gate_name_weight: float = _setting(
        0.2, "Weight of the subject's name in the similarity (paper: 0).", least=0, below=1
    )
    gate_state_weight: float | None = _setting(
        None,
        "Weight of the LM's own state in the similarity (paper: 0), the rest is the cosine; null: "
        "calibrated with the threshold, 0 if that is given.",
        least=0,
        below=1,
    )
    familiarity_classes: int = _setting(10, "K random labels.", least=1)
    familiarity_blocks: int = _setting(5, "Residual FFN blocks.", least=1)
    familiarity_dropout: float = _setting(0.1, "Dropout in the blocks.", least=0, below=1)
    familiarity_lr: float = _setting(1e-3, "AdamW learning rate.", least=0)
    familiarity_epochs: int = _setting(2000, "At most; training stops at convergence.", least=0)

    # Stage 3, collection (section 4.1 c.1)
    neuron_activation: str | None = _setting(None, "Activation of the neuron; null: found.")
    neuron_bias: bool | None = _setting(None, "Whether the neuron has a bias; null: found.")
    collection_lr: float = _setting(1.0, "SGD learning rate.", least=0)
    collection_steps: int = _setting(60, "SGD steps at most.", least=1)
    collection_schedule: Literal["constant", "cosine"] = _setting("constant", "Of the rate.")
    collection_contexts: int = _setting(
        2, "Contexts per fact: the bare prompt and random others.", least=1
    )
    collection_margin: float = _setting(0.01, "A fact is finished below this loss (nats).", least=0)
    collection_batch_size: int = _setting(
        256, "Rows optimised at once: facts times contexts.", least=1
    )
    collection_bfloat16: bool = _setting(
        False, "Optimise under bfloat16 autocast: faster where the hardware knows it."
    )
    collection_retries: int = _setting(
        2, "More rounds for facts that failed, at half the rate.", least=0
    )

    # Stage 4, weight generator (section 4.1 c.2)
    generator: Literal["dit", "mlp", "bank"] = _setting("dit", "What produces the neuron.")
    generator_anchored: bool = _setting(True, "Snap a query to the nearest edited query first.")
    generator_width: int = _setting(384, "Hidden width.", least=1)
    generator_depth: int = _setting(6, "Blocks.", least=1)
    generator_condition: Literal["time", "patches"] = _setting(
        "patches", "Where z enters the DiT: with the time step (paper), or at every patch too."
    )
    generator_heads: int = _setting(6, "Attention heads of the DiT.", least=1)
    generator_patch_size: int = _setting(100, "Neuron values per DiT token.", least=1)
    generator_dropout: float = _setting(0.0, "Dropout.", least=0, below=1)
    generator_scaling: Literal["constant", "whiten"] = _setting(
        "whiten", "Targets divided by generator_scale (paper), or whitened over the edits."
    )
    generator_scale: float = _setting(
        0.01, "Divisor of the targets: their typical size.", least=1e-12
    )
    generator_epochs: int = _setting(200, "Passes over the edits, at most.", least=1)
    generator_steps: int = _setting(500, "At least so many steps, for few edits.", least=1)
    generator_tolerance: float = _setting(
        0.1,
        "Training ends early at this error, in standard deviations of the scaled neurons.",
        least=0,
    )
    generator_batch_size: int = _setting(256, "Facts per training step.", least=1)
    generator_lr: float = _setting(1e-3, "AdamW learning rate.", least=0)
    generator_ema: float = _setting(
        0.99, "Decay of the averaged weights; 0: no average.", least=0, below=1
    )
    generator_condition_noise: float = _setting(
        0.0, "Noise on z while training, in units of |z|.", least=0
    )
    generator_zero_augmentation: float = _setting(
        0.0,
        "Share of pseudo-irrelevant queries taught to give the zero neuron (DA, A.3).",
        least=0,
    )
    diffusion_prediction: Literal["v_prediction", "sample"] = _setting("sample", "Eq. 7, or x0.")
    diffusion_train_timesteps: int = _setting(1000, "Length of the noise schedule.", least=21)
    sampler: Literal["ddim", "dpm"] = _setting("ddim", "Deterministic sampler.")
    sampling_steps: int = _setting(4, "Sampling steps (paper: 50).", least=1)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            value = _coerce(getattr(self, entry.name), hints[entry.name], entry.name)
            _check_range(entry.name, value, entry.metadata["least"], entry.metadata["below"])
            setattr(self, entry.name, value)
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
        if self.sampling_steps > self.diffusion_train_timesteps:
            raise HParamsError(
                f"sampling_steps: expected at most diffusion_train_timesteps "
                f"({self.diffusion_train_timesteps}), got {self.sampling_steps}"
            )

    @property
    def layer(self) -> int:
        """The 0-based decoder layer which gets the neuron."""
        return self.layers[0]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MeGHyperParams:
        """Build from a mapping, refusing unknown keys with the nearest valid name."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
                raise HParamsError(f"unknown hyper-parameter {key!r}{hint}")
        return cls(**dict(values))

    @classmethod
    def from_hparams(cls, path: str | Path) -> MeGHyperParams:
        """Read a flat YAML file, as EasyEdit does; `.yaml` may be left off.

        Raises:
            FileNotFoundError: no such file.
            HParamsError: not YAML, not a flat mapping, an unknown key, or a bad value.
        """
        path = Path(path)
        if not path.is_file() and path.suffix != ".yaml":
            path = path.with_name(f"{path.name}.yaml")  # names have dots: llama3.2-3b
        try:
            values = yaml.safe_load(path.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise HParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise HParamsError(f"{path}: expected a flat YAML mapping, got {type(values).__name__}")
        return cls.from_dict(values)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MeGHyperParams:
        """A shipped preset: "default", our choice, or "paper", the method as published.

        Raises:
            HParamsError: no preset of that name; the message lists those there are.
        """
        folder = files("meg_editor") / "presets"
        entry = folder / f"{name}.yaml"
        if not entry.is_file():
            names = sorted(e.name[:-5] for e in folder.iterdir() if e.name.endswith(".yaml"))
            raise HParamsError(f"no preset {name!r}; there are {', '.join(names)}")
        return cls.from_dict({**yaml.safe_load(entry.read_text("utf-8")), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return dataclasses.asdict(self)


def _check_range(name: str, value: Any, least: float | None, below: float | None) -> None:
    if value is None:
        return
    if least is not None and value < least:
        raise HParamsError(f"{name}: expected at least {least}, got {value}")
    if below is not None and value >= below:
        raise HParamsError(f"{name}: expected less than {below}, got {value}")


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Check `value` against its type hint; YAML's "1e-4" (text) becomes a number."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise HParamsError(f"{name}: expected one of {get_args(hint)}, got {value!r}")
        return value
    options = get_args(hint) if get_origin(hint) not in (None, list) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if get_origin(hint) is Literal:
        return _coerce(value, hint, name)
    if hint == list[int]:
        if isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
            return list(value)
    elif hint is float:
        try:
            if not isinstance(value, bool) and math.isfinite(float(value)):
                return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        raise HParamsError(f"{name}: expected a finite number, got {value!r}")
    elif hint is str and name == "device" and type(value) is int:
        return f"cuda:{value}"
    elif type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise HParamsError(f"{name}: expected {wanted}, got {value!r} ({type(value).__name__})")
