"""The single dynamic neuron: its sizes and its place in a model, and the hook which adds it.

MeG edits a frozen LLM by giving one FFN layer ONE extra neuron whose weights depend on the query
(arXiv 2512.14395, section 4.2, eq. 10-12): `ffn(x) += act(k·x + b) · v`, with its own (k, b, v)
for each row of a batch. A query which is not an edit gets the zero neuron, a bit-exact no-op.

Shapes: B queries, T tokens, D hidden size, P neuron size. Nothing here changes a parameter of the
model: without attached neurons it is the unedited model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from meg_editor.lm.ffn import decoder_blocks, find_ffn, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from meg_editor.config.hparams import MeGHyperParams

# How transformers' configs spell the activation of their FFN.
_ACTIVATION_KEYS = ("activation_function", "hidden_activation", "hidden_act", "activation")


@dataclass(frozen=True)
class NeuronSpec:
    """Where the dynamic neuron sits and what it looks like. Raises ValueError if that is nonsense.

    layer: index of the decoder block, from 0.
    read: dotted name of the module whose INPUT the neuron reads.
    write: dotted name of the module whose OUTPUT it is added to (`read` again, except in OPT).
    hidden_size: D.
    activation: a name of transformers' ACT2FN, such as "gelu_new"; "linear" for none.
    bias: whether the neuron has a bias b.
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
        """Views of the parts of flat neurons (..., P): k (..., D), b (...,) or None, v (..., D).

        Raises ValueError if the last dimension is not P.
        """
        if neurons.shape[-1:] != (self.size,):
            raise ValueError(f"expected neurons (..., {self.size}), got {tuple(neurons.shape)}")
        size = self.hidden_size
        bias = neurons[..., size] if self.bias else None
        return neurons[..., :size], bias, neurons[..., -size:]

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        layer: int,
        *,
        module_template: str | None = None,
        activation: str | None = None,
        bias: bool | None = None,
    ) -> NeuronSpec:
        """The spec of a neuron in the FFN of decoder block `layer`, found by the FFN's structure.

        A plain FFN gets a neuron like its own (its activation, with bias); a gated one gets the
        paper's Llama neuron: linear, without bias (A.11.1). `activation` and `bias` override that.
        `module_template`, such as "model.layers.{}.mlp" (EasyEdit's mlp_module_tmp), overrides the
        place; where it names a linear layer of an FFN ("model.decoder.layers.{}.fc2" in OPT), the
        neuron reads at the first and writes at the last linear layer of that FFN.

        Raises ValueError for a layer which does not exist, a template which names no FFN, and
        layers without a usable one: mixtures of experts, FFNs which add the residual (Bloom, MPT).
        """
        ffn = find_ffn(model, layer, module_template)
        config = text_config(model)
        if activation is None and not ffn.gated:
            own = (getattr(config, key, None) for key in _ACTIVATION_KEYS)
            activation = next((name for name in own if isinstance(name, str)), None)
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
    def from_hparams(cls, model: PreTrainedModel, hparams: MeGHyperParams) -> NeuronSpec:
        """`from_model` with everything the hyper-parameters say of the neuron."""
        return cls.from_model(
            model,
            hparams.layer,
            module_template=hparams.mlp_module_tmp,
            activation=hparams.neuron_activation,
            bias=hparams.neuron_bias,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NeuronSpec:
        """The inverse of `to_dict`. Raises ValueError for missing and unexpected keys."""
        if wrong := {field.name for field in fields(cls)} ^ set(data):
            raise ValueError(f"missing or unexpected keys of NeuronSpec: {sorted(wrong)}")
        return cls(**data)


def count_layers(model: PreTrainedModel) -> int:
    """The number of decoder blocks. Raises ValueError if the model has none to be found."""
    return len(decoder_blocks(model)[1])


class NeuronHook:
    """Adds one neuron per batch row to the FFN within `attached`; does nothing otherwise.

        with NeuronHook(model, spec) as hook, hook.attached(neurons):
            model.generate(**batch)

    The forward passes may have more rows than there are neurons (beams, num_return_sequences):
    each neuron then serves as many consecutive rows. `remove`, or leaving the `with`, takes the
    hooks out of the model again. Raises ValueError if the model has no such modules.
    """

    def __init__(self, model: nn.Module, spec: NeuronSpec) -> None:
        self.spec = spec
        self._activation = ACT2FN[spec.activation]
        self._neurons: Tensor | None = None  # (B, P) while attached
        self._input: Tensor | None = None  # from `read` to `write` of one forward pass
        self._batch: int | None = None  # rows of that forward pass
        modules = dict(model.named_modules())
        if absent := {spec.read, spec.write} - set(modules):
            raise ValueError(
                f"{type(model).__name__} has no module {' or '.join(map(repr, absent))}"
            )
        parent = modules[spec.read.rpartition(".")[0]]
        self._handles = [
            parent.register_forward_pre_hook(self._note_batch, with_kwargs=True),
            modules[spec.read].register_forward_pre_hook(self._note_input, with_kwargs=True),
            modules[spec.write].register_forward_hook(self._add_neurons),
        ]

    @contextmanager
    def attached(self, neurons: Tensor | None) -> Iterator[None]:
        """Within the block, rows get their neurons (B, P); None attaches nothing.

        Blocks nest: leaving one restores what was attached before it. Gradients flow to `neurons`;
        under gradient checkpointing the backward pass belongs inside the block too. Raises
        ValueError for another shape or a removed hook, and, in the forward pass, for a batch whose
        rows are not a multiple of B.
        """
        if not self._handles:
            raise ValueError("this NeuronHook was removed: it cannot attach neurons")
        if neurons is not None:
            shape = tuple(neurons.shape)
            if len(shape) != 2 or shape[0] == 0 or shape[1] != self.spec.size:
                raise ValueError(f"expected neurons of shape (B, {self.spec.size}), got {shape}")
        previous, self._neurons = self._neurons, neurons
        try:
            yield
        finally:
            self._neurons, self._input = previous, None

    def remove(self) -> None:
        """Takes the hooks out of the model; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> NeuronHook:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _note_batch(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # OPT flattens to (B*T, D) before its FFN: only the block still knows B.
        if self._neurons is not None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            self._batch = None if hidden is None else hidden.shape[0]

    def _note_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._neurons is not None:
            self._input = args[0] if args else next(iter(kwargs.values()))

    def _add_neurons(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        x, self._input = self._input, None
        if self._neurons is None or x is None:
            return None  # PyTorch keeps the output as it is
        first = output[0] if isinstance(output, tuple) else output
        first = first + self._addition(x, self._neurons).reshape(first.shape).to(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    def _addition(self, x: Tensor, neurons: Tensor) -> Tensor:
        """act(k·x + b) · v for FFN inputs x (B, T, D) or (B*T, D): (B, T, D), at least float32."""
        rows, size = neurons.shape[0], self.spec.hidden_size
        batch = x.shape[0] if self._batch is None else self._batch
        if x.shape[-1] != size:
            raise ValueError(f"expected FFN inputs (B, T, {size}), got {tuple(x.shape)}")
        if batch % rows:
            raise ValueError(
                f"{rows} neurons are attached: expected {rows} rows in the batch or a multiple of "
                f"that, got {batch} (packed and paged batches are not supported)"
            )
        # Half precision would round the sum over D. A product and a sum, not a matmul: autocast
        # and TF32 leave them in float32, and one neuron per row is too little work to gain.
        x = x.reshape(batch, -1, size).to(torch.promote_types(x.dtype, torch.float32))
        k, b, v = self.spec.split(neurons.to(x).repeat_interleave(batch // rows, dim=0))
        key = (x * k.unsqueeze(1)).sum(dim=-1)  # (B, T)
        value = self._activation(key if b is None else key + b.unsqueeze(1))
        addition: Tensor = value.unsqueeze(-1) * v.unsqueeze(1)
        return addition
