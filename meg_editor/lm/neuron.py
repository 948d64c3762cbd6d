"""Layer, modules and size of the dynamic neuron (section 4.2); `NeuronHook` applies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from meg_editor.lm.ffn import decoder_blocks, find_ffn_modules, text_config
from meg_editor.lm.protocols import CausalLM

if TYPE_CHECKING:
    from meg_editor.config.hparams import MeGHyperParams

# How transformers' configs spell the activation of their FFN.
_ACTIVATION_KEYS = (
    "activation_function",
    "hidden_activation",
    "hidden_act",
    "mlp_hidden_act",  # Nemotron-H
    "activation",
)


@dataclass(frozen=True)
class NeuronSpec:
    """Layer, modules, size and activation of the dynamic neuron (section 4.2, A.11.1).

    Attributes:
        layer: index of the decoder block, from 0.
        read: dotted name of the module whose INPUT the neuron reads.
        write: dotted name of the module whose OUTPUT it is added to (`read` again, except in OPT).
        hidden_size: D.
        activation: a name of transformers' ACT2FN, such as "gelu_new"; "linear" for none.
        bias: whether the neuron has a bias b.

    Raises:
        ValueError: a negative layer, an empty hidden size or an unknown activation.

    Example:
        >>> NeuronSpec(14, "model.layers.14.mlp", "model.layers.14.mlp", 4096, "linear", False).size
        8192
    """

    layer: int
    read: str
    write: str
    hidden_size: int
    activation: str
    bias: bool

    def __post_init__(self) -> None:
        if self.layer < 0 or self.hidden_size < 1:
            raise ValueError(f"impossible layer or hidden_size in {self}")
        if self.activation not in ACT2FN:
            known = ", ".join(sorted(ACT2FN))
            raise ValueError(f"unknown activation {self.activation!r}; there are: {known}")

    @property
    def size(self) -> int:
        """P, in weights: 2D, +1 with bias (A.11.1: Phi-2 5121, GPT-J 8193, Llama-3 8192)."""
        return 2 * self.hidden_size + self.bias

    def split(self, neurons: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Key, bias and value of flat neurons, as views.

        Args:
            neurons: (..., P).

        Returns:
            k (..., D), b (...,) or None, v (..., D).

        Raises:
            ValueError: the last dimension is not P.

        Example:
            >>> import torch
            >>> spec = NeuronSpec(0, "mlp", "mlp", hidden_size=2, activation="gelu", bias=True)
            >>> [part.tolist() for part in spec.split(torch.arange(5.0))]
            [[0.0, 1.0], 2.0, [3.0, 4.0]]
        """
        if neurons.shape[-1:] != (self.size,):
            raise ValueError(f"expected neurons (..., {self.size}), got {tuple(neurons.shape)}")
        size = self.hidden_size
        bias = neurons[..., size] if self.bias else None
        return neurons[..., :size], bias, neurons[..., -size:]

    @classmethod
    def from_model(
        cls,
        model: CausalLM,
        layer: int,
        *,
        module_template: str | None = None,
        activation: str | None = None,
        bias: bool | None = None,
    ) -> NeuronSpec:
        """Spec of a neuron in the FFN of decoder block `layer`.

        A plain FFN gets a neuron with the activation of the FFN and a bias; a gated one gets the
        paper's Llama neuron: linear, without bias (A.11.1). So does a mixture of experts: the
        neuron is beside all of it, whichever experts a token is routed to.

        Args:
            layer: index of the block, from 0.
            module_template: such as "model.layers.{}.mlp" (EasyEdit's mlp_module_tmp); default: by
                structure. If it names a linear layer of an FFN ("model.decoder.layers.{}.fc2" in
                OPT), the neuron reads at the first and writes at the last linear layer of it.
            activation, bias: override those above.

        Raises:
            ValueError: no such layer, a template which names no FFN, or a layer without a usable
                one: FFNs which add the residual (Bloom, MPT), recurrent blocks (Mamba).

        Example:
            >>> from meg_editor import MeGHyperParams, load_model
            >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
            >>> spec = NeuronSpec.from_model(model, layer=2)
            >>> spec.read, spec.activation
            ('model.layers.2.mlp', 'linear')
        """
        ffn = find_ffn_modules(model, layer, module_template)
        config = text_config(model)
        if activation is None and not ffn.gated:
            names = (getattr(config, key, None) for key in _ACTIVATION_KEYS)
            activation = next((name for name in names if isinstance(name, str)), None)
            if activation is None:
                raise ValueError(f"{type(config).__name__} names no activation: pass activation=")
        return cls(
            layer=layer,
            read=ffn.read,
            write=ffn.write,
            hidden_size=config.hidden_size,
            activation=activation or "linear",
            bias=not ffn.gated if bias is None else bias,
        )

    @classmethod
    def from_hparams(cls, model: CausalLM, hparams: MeGHyperParams) -> NeuronSpec:
        """`from_model` with the layer and module template of the hyper-parameters."""
        layer = middle_layer(model) if hparams.layer is None else hparams.layer
        return cls.from_model(model, layer, module_template=hparams.mlp_module_tmp)

    def in_half_range(self, neurons: Tensor) -> Tensor:
        """Neurons (N, P) of the same function, whose values float16 holds (below 2¹⁶) if they can.

        A linear neuron (k·x) v is that of 2ⁿk and 2⁻ⁿv too, bit for bit. Values are in the units of
        the residual stream, which is above 2¹⁵ in some models.

        Example:
            >>> spec = NeuronSpec(0, "mlp", "mlp", hidden_size=1, activation="linear", bias=False)
            >>> spec.in_half_range(torch.tensor([[0.5, 131072.0], [0.5, 3.0]])).tolist()
            [[2.0, 32768.0], [0.5, 3.0]]
        """
        if self.activation != "linear" or self.bias:
            return neurons
        k, _, v = self.split(neurons)
        power = (v.abs().amax(-1, keepdim=True) / 2**15).log2().ceil().clamp_min(0)
        return torch.cat([k * 2**power, v / 2**power], -1)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NeuronSpec:
        """The inverse of `to_dict`.

        Raises:
            ValueError: missing or unexpected keys.
        """
        if wrong := {field.name for field in fields(cls)} ^ set(data):
            raise ValueError(f"missing or unexpected keys of NeuronSpec: {sorted(wrong)}")
        return cls(**data)


def middle_layer(model: CausalLM, share: float = 15 / 32) -> int:
    """The layer for a neuron where none is named: a little before the middle.

    A share of the depth; where that layer has no usable FFN (Nemotron-H), the nearest that has
    one, the upper of two.

    Raises:
        ValueError: no layer has a usable FFN; what is wrong with that layer.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> middle_layer(load_model(MeGHyperParams.preset("default", device="cpu"))[0])
        1
    """
    wanted = int(
        share * count_layers(model)
    )  # 14 of 30, as measured on SmolLM2; the paper's 14 of 32
    return nearest_layer(model, wanted, partial(find_ffn_modules, model))


def nearest_layer(model: CausalLM, wanted: int, check: Callable[[int], object]) -> int:
    """The layer nearest to `wanted` that `check` does not refuse by a ValueError, the upper of two.

    Raises:
        ValueError: it refuses all; what is wrong with `wanted`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> nearest_layer(model, 2, partial(find_ffn_modules, model))
        2
    """
    for layer in sorted(range(count_layers(model)), key=lambda n: (abs(n - wanted), -n)):
        if accepts(check, layer):
            return layer
    check(wanted)
    raise ValueError(f"layer {wanted}: the model has no decoder blocks")


def accepts(check: Callable[[int], object], layer: int) -> bool:
    """Whether `check` does not refuse a layer by a ValueError."""
    try:
        check(layer)
    except ValueError:
        return False
    return True


def usable_layers(model: CausalLM) -> list[int]:
    """The layers which can get a neuron: not those of attention or recurrence alone.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> usable_layers(load_model(MeGHyperParams.preset("default", device="cpu"))[0])
        [0, 1, 2, 3]
    """
    check = partial(find_ffn_modules, model)
    return [layer for layer in range(count_layers(model)) if accepts(check, layer)]


def count_layers(model: CausalLM) -> int:
    """Number of decoder blocks.

    Raises:
        ValueError: not a decoder LM of transformers.
    """
    return len(decoder_blocks(model)[1])
