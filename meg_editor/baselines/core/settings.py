"""What the hyper-parameters of the baselines have in common, in EasyEdit's spelling.

    BaselineHyperParams -> LayerHyperParams -> WriteHyperParams -> LocateHyperParams ->
    CovarianceHyperParams; FittingHyperParams is mixed in

A class shows the settings that its method reads and no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from meg_editor.config.input_files import short_repr
from meg_editor.config.settings import FlatHyperParams, HParamsError, setting
from meg_editor.lm.ffn import decoder_blocks, find_ffn
from meg_editor.lm.neuron import accepts, nearest_layer
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Example, encode_example
from meg_editor.requests.prompts import in_template

Params = TypeVar("Params", bound="BaselineHyperParams")


@dataclass
class BaselineHyperParams(FlatHyperParams):
    """Settings of every baseline. A subclass names itself by the default of `alg_name`.

    EasyEdit's files also hold keys that do not matter here. Each class declares its own; those of
    its base classes are added.

    Attributes:
        ignored: keys which `from_dict` and `from_hparams` drop, whatever their value.
        fixed: keys which they accept with these values only, and drop.
        renamed: old name -> the name it has now.

    Example:
        >>> from meg_editor.baselines import MEMITHyperParams
        >>> MEMITHyperParams.from_dict({"layers": [4, 5], "stats_dir": "./data/stats"}).layers
        [4, 5]
    """

    ignored: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "max_length",
        "evaluation_type",
        "api_key",
        "use_chat_template",
        "save_path",
        "rows_at_once",  # ours, of most methods: the benchmark sets them for all alike
        "seed",
    )
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}

    model_name: str = setting("", "Hub id or local directory of the causal LM.")
    alg_name: str = setting("", "The method's name.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, or a CUDA index.")
    fp16: bool = setting(False, "Load the LM in float16.")
    model_parallel: bool = setting(False, "Spread the LM over all GPUs (device_map='auto').")
    prompt_template: str = setting("{}", "The LM's input for a query; {} is the query.")

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__dataclass_fields__["alg_name"].default
        if self.alg_name != name:
            raise HParamsError(f"alg_name: expected {name!r}, got {short_repr(self.alg_name)}")
        if self.prompt_template.count("{}") != 1:
            raise HParamsError(
                "prompt_template: expected exactly one {}, got "
                f"{short_repr(self.prompt_template)}"
            )

    @classmethod
    def from_dict(cls: type[Params], values: Mapping[str, Any]) -> Params:
        """Build from a mapping, without the keys of EasyEdit which do not matter here.

        Raises:
            HParamsError: an unknown key, with the nearest valid name; a renamed one, with its new
                name; a key of `fixed` with another value.
        """
        fields = {entry.name for entry in dataclasses.fields(cls)}
        ignored: set[str] = set()
        fixed: dict[str, tuple[Any, ...]] = {}
        for base in cls.__mro__:
            ignored.update(vars(base).get("ignored", ()))
            fixed = {**vars(base).get("fixed", {}), **fixed}
        chosen = {}
        for key, value in cls.translated(values).items():
            if key in fields or key not in ignored | fixed.keys():
                chosen[key] = value
            elif key in fixed and value not in fixed[key]:
                expected = " or ".join(map(repr, fixed[key]))
                raise HParamsError(
                    f"{key}: expected {expected} (nothing else is implemented), got "
                    f"{short_repr(value)}"
                )
        return super().from_dict(chosen)

    @classmethod
    def explain(cls, key: str) -> str | None:
        """The new name of a setting which was renamed."""
        return f"it is {cls.renamed[key]} now" if key in cls.renamed else None

    @classmethod
    def translated(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """`values` with EasyEdit's spelling turned into ours, where the two differ."""
        return values


@dataclass
class FittingHyperParams(BaselineHyperParams):
    """Settings of methods which optimise something or draw at random."""

    rows_at_once: int = setting(
        64,
        "Sequences per forward pass: lower it if memory runs out; results are the same.",
        ge=1,
        lt=2**20,
    )
    seed: int = setting(0, "Seed of every random choice.", ge=-(2**63), lt=2**63)


@dataclass
class LayerHyperParams(BaselineHyperParams):
    """Settings of methods which work at the FFN of certain decoder layers.

    EasyEdit's module templates are ignored: modules are found by the structure of the model.
    """

    ignored: ClassVar[tuple[str, ...]] = (
        "layer_module_tmp",
        "mlp_module_tmp",
        "attn_module_tmp",
        "ln_f_module",
        "lm_head_module",
        "stats_dir",
        "rewrite_module_tmp",
    )
    # First and last layer as shares of the depth, where none are named: those which the authors
    # take in a model of 32 layers.
    span: ClassVar[tuple[float, float]] = (15 / 32, 15 / 32)
    one_layer: ClassVar[bool] = False  # of methods which work in one layer alone

    layers: list[int] | None = setting(
        None, "Decoder layers, 0-based, in ascending order; null: chosen by the model's depth."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            return
        if not self.layers or self.layers != sorted(set(self.layers)):
            raise HParamsError(f"layers: expected ascending indices, got {short_repr(self.layers)}")
        if self.one_layer and len(self.layers) != 1:
            raise HParamsError(
                f"layers: expected one layer such as [7], got {short_repr(self.layers)}"
            )

    def layers_of(self, model: CausalLM) -> list[int]:
        """`layers`; where none are named those of `span`, or the nearest one the method can use.

        Raises:
            ValueError: the method can use no layer of the model.

        Example:
            >>> from meg_editor import MeGHyperParams, load_model
            >>> from meg_editor.baselines import MALMENHyperParams, MEMITHyperParams
            >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
            >>> MEMITHyperParams().layers_of(model), MALMENHyperParams().layers_of(model)
            ([0, 1], [3])
        """
        if self.layers is not None:
            return self.layers
        depth = len(decoder_blocks(model)[1])
        first, last = (int(share * depth) for share in self.span)
        check = partial(self._check_layer, model)
        chosen = [layer for layer in range(first, last + 1) if accepts(check, layer)]
        return chosen or [nearest_layer(model, first, check)]

    def _check_layer(self, model: CausalLM, layer: int) -> None:
        """Raises ValueError where the method cannot work in this layer."""
        find_ffn(model, layer)

    def down_projections(self, model: CausalLM) -> list[str]:
        """The dotted name of the FFN's last linear layer, for each of `layers_of(model)`.

        Raises:
            ValueError: a layer does not exist or has no usable FFN.
        """
        return [find_ffn(model, layer).down for layer in self.layers_of(model)]


@dataclass
class WriteHyperParams(LayerHyperParams):
    """Settings of methods which fit a layer's output or weights to target answers."""

    rewrite_module_tmp: str | None = setting(
        None, "The FFN's last linear layer with {} for the layer; null: found."
    )
    target_end: bool = setting(
        True, "End targets with the end-of-text token; false: answers may run on."
    )

    def example(self, tok: Tokenizer, prompt: str, target: str) -> Example:
        """A prompt in the template and its target as tokens."""
        return encode_example(
            tok, in_template(self.prompt_template, prompt), target, self.target_end
        )

    def down_projections(self, model: CausalLM) -> list[str]:
        """The dotted name of the FFN's last linear layer, for each of `layers_of(model)`.

        Raises:
            ValueError: a layer does not exist, has no usable FFN, or the template names no module.
        """
        template = self.rewrite_module_tmp
        if template is None:
            return super().down_projections(model)
        layers = self.layers_of(model)
        names = [template.format(layer).removesuffix(".weight") for layer in layers]
        modules = dict(model.named_modules())
        for layer, name in zip(layers, names, strict=True):
            if name not in modules:
                raise ValueError(
                    f"rewrite_module_tmp: {short_repr(name)} does not exist; by default it is "
                    f"{find_ffn(model, layer).down!r}"
                )
        return names


@dataclass
class LocateHyperParams(WriteHyperParams, FittingHyperParams):
    """Settings of methods that find a key and a new value for each subject, as ROME does."""

    ignored: ClassVar[tuple[str, ...]] = (
        "mom2_dataset",
        "mom2_n_samples",
        "mom2_max_length",
        "mom2_dtype",
        "mom2_update_weight",
    )
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "layer_selection": ("all",),
        "mom2_adjustment": (True,),
    }
    span: ClassVar[tuple[float, float]] = (4 / 32, 8 / 32)

    fact_token: Literal["last", "subject_first", "subject_last", "subject_first_after_last"] = (
        setting("subject_last", "The token at which a fact is looked up.")
    )
    context_prefixes: int = setting(
        5,
        "Sampled texts put before a prompt; keys and values are averaged over them.",
        ge=0,
        lt=1000,
    )
    v_num_grad_steps: int = setting(25, "Adam steps on a value.", ge=1, lt=10**7)
    v_lr: float = setting(0.5, "Adam's learning rate.", ge=0)
    v_loss_layer: int | None = setting(None, "The last layer; null: the last layer.")
    v_weight_decay: float = setting(1e-3, "Weight of |shift| / |value|².", ge=0)
    clamp_norm_factor: float = setting(4, "Maximum norm of a shift, in norms of the value.", ge=0)
    kl_factor: float = setting(0.0625, "Weight of the KL divergence on '{subject} is a'.", ge=0)

    def check(self, model: CausalLM) -> None:
        """Refuse a loss in a layer which is not the last one.

        Raises:
            HParamsError: `v_loss_layer` is another layer.
        """
        last = len(decoder_blocks(model)[1]) - 1
        if self.v_loss_layer not in (None, last):
            raise HParamsError(
                f"v_loss_layer: expected {last} (the last layer) or null, got {self.v_loss_layer}"
            )


@dataclass
class CovarianceHyperParams(LocateHyperParams):
    """Settings of methods which preserve answers by a covariance of keys (MEMIT, eq. 15)."""

    mom2_n_samples: int = setting(100000, "Maximum number of texts for the covariance.", ge=1)
    mom2_dtype: Literal["float32", "float64"] = setting("float32", "Precision of its sums.")
    mom2_max_length: int = setting(128, "Maximum length of such a text, in tokens.", ge=1, lt=2**24)
