"""What the hyper-parameters of the baselines have in common, in EasyEdit's spelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from meg_editor.config.settings import FlatHyperParams, HParamsError, setting
from meg_editor.lm.ffn import decoder_blocks, find_ffn


@dataclass
class BaselineHyperParams(FlatHyperParams):
    """What every baseline is told.

    A subclass names itself by the default of `alg_name`.
    """

    model_name: str = setting("", "Hub id or local directory of the causal LM.")
    alg_name: str = setting("", "The method's name.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, or a CUDA index.")
    fp16: bool = setting(False, "Load the LM in float16.")
    model_parallel: bool = setting(False, "Spread the LM over all GPUs (device_map='auto').")
    batch_size: int = setting(1024, "Facts EasyEdit passes to one call.", ge=1)
    max_length: int = setting(128, "Longest text in tokens while fitting.", ge=1)
    prompt_template: str = setting("{}", "What the LM sees of a query; {} is the query.")
    target_end: bool = setting(
        True, "Whether the end of text is part of a target; without it answers may run on."
    )
    rows_at_once: int = setting(64, "Sequences in one forward pass.", ge=1)
    seed: int = setting(0, "Seed of every random choice.")

    def __post_init__(self) -> None:
        super().__post_init__()
        own = type(self).__dataclass_fields__["alg_name"].default
        if self.alg_name != own:
            raise HParamsError(f"alg_name: expected {own!r}, got {self.alg_name!r}")
        if self.prompt_template.count("{}") != 1:
            raise HParamsError(
                f"prompt_template: expected exactly one {{}}, got {self.prompt_template!r}"
            )


@dataclass
class LayerHyperParams(BaselineHyperParams):
    """Of a method which works at the FFN of certain layers.

    Module templates but `rewrite_module_tmp` are read for EasyEdit's sake alone: where things are
    is found by the structure of the model.
    """

    one_layer: ClassVar[bool] = False  # of methods which work in one layer alone

    layers: list[int] = setting([0], "Decoder layers, 0-based, in ascending order.")
    rewrite_module_tmp: str | None = setting(
        None, "The FFN's last linear layer with {} for the layer; null: found."
    )
    layer_module_tmp: str | None = setting(None, "Not needed.")
    mlp_module_tmp: str | None = setting(None, "Not needed.")
    attn_module_tmp: str | None = setting(None, "Not needed.")
    ln_f_module: str | None = setting(None, "Not needed.")
    lm_head_module: str | None = setting(None, "Not needed.")
    stats_dir: str | None = setting(None, "Not needed: pass a store.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers or self.layers != sorted(set(self.layers)):
            raise HParamsError(f"layers: expected ascending indices, got {self.layers}")
        if self.one_layer and len(self.layers) != 1:
            raise HParamsError(f"layers: expected one layer such as [7], got {self.layers}")

    def down_projections(self, model: Any) -> list[str]:
        """The dotted name of the FFN's last linear layer, for each of `layers`.

        Raises:
            ValueError: a layer does not exist, has no usable FFN, or the template names no module.
        """
        template = self.rewrite_module_tmp
        if template is None:
            return [find_ffn(model, layer).down for layer in self.layers]
        names = [template.format(layer).removesuffix(".weight") for layer in self.layers]
        modules = dict(model.named_modules())
        for layer, name in zip(self.layers, names, strict=True):
            if name not in modules:
                raise ValueError(
                    f"rewrite_module_tmp: {name!r} does not exist; by default it is "
                    f"{find_ffn(model, layer).down!r}"
                )
        return names


@dataclass
class LocateHyperParams(LayerHyperParams):
    """Of methods which find a key and a new value for each subject (ROME and its heirs)."""

    layer_selection: Literal["all"] = setting("all", "Always all.")
    fact_token: Literal["last", "subject_first", "subject_last", "subject_first_after_last"] = (
        setting("subject_last", "The token at which a fact is looked up.")
    )
    context_prefixes: int = setting(
        5, "Texts of the model's own which keys and values are averaged over.", ge=0
    )
    v_num_grad_steps: int = setting(25, "Steps of Adam on a value.", ge=1)
    v_lr: float = setting(0.5, "Rate of Adam.", ge=0)
    v_loss_layer: int | None = setting(None, "Always the last one; null: the last one.")
    v_weight_decay: float = setting(1e-3, "Weight of |shift| / |value|².", ge=0)
    clamp_norm_factor: float = setting(4, "A shift has at most this norm, in values.", ge=0)
    kl_factor: float = setting(0.0625, "Weight of the KL divergence on '{subject} is a'.", ge=0)
    mom2_adjustment: bool = setting(True, "Always true.")
    mom2_update_weight: float = setting(15000, "Weight λ of the covariance.", ge=0)
    mom2_dataset: str = setting("", "Not needed: pass texts.")
    mom2_n_samples: int = setting(100000, "Texts for the covariance, at most.", ge=1)
    mom2_dtype: Literal["float32", "float64"] = setting("float32", "Precision of its sums.")

    def check(self, model: Any) -> None:
        """Refuse a loss in a layer which is not the last one.

        Raises:
            HParamsError: `v_loss_layer` is another layer.
        """
        last = len(decoder_blocks(model)[1]) - 1
        if self.v_loss_layer not in (None, last):
            raise HParamsError(
                f"v_loss_layer: expected {last} (the last layer) or null, got {self.v_loss_layer}"
            )
