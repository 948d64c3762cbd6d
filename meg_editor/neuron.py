"""The single dynamic neuron: where it sits in a language model, and the hook which adds it.

MeG edits a frozen LLM by giving one FFN layer ONE extra neuron whose weights depend on the query
(arXiv 2512.14395, section 4.2, eq. 10-12): `ffn(x) += act(k·x + b) · v`, with its own (k, b, v)
for each row of a batch. A query which is not an edit gets the zero neuron, a bit-exact no-op.

Shapes: B queries, T tokens, D hidden size, P neuron size. Nothing here changes a parameter of the
model: without attached neurons it is the unedited model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        path = _block_path(model, layer)
        if module_template is None:
            site = _find_site(model, path)
        elif "{}" not in module_template:
            raise ValueError(f"module_template {module_template!r} has no {{}} for the layer")
        else:
            site = _named_site(model, path, module_template.replace("{}", str(layer)))
        config = _text_config(model)
        if activation is None and not site.gated:
            own = (getattr(config, key, None) for key in _ACTIVATION_KEYS)
            activation = next((name for name in own if isinstance(name, str)), None)
            if activation is None:
                raise ValueError(f"{type(config).__name__} names no activation: pass activation=")
        return cls(
            layer=layer,
            read=site.read,
            write=site.write,
            hidden_size=config.hidden_size,
            activation=activation or "linear",
            bias=not site.gated if bias is None else bias,
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
    return len(_decoder_blocks(model)[1])


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


class _Site(NamedTuple):
    """A place for the neuron: dotted names to read and write at, and what the FFN there is like."""

    read: str
    write: str
    gated: bool
    width: int  # inner size of the FFN


def _decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The dotted name of the list of decoder blocks, and the list."""
    if not hasattr(model, "get_decoder"):
        raise ValueError(f"expected a transformers language model, got {type(model).__name__}")
    count = getattr(_text_config(model), "num_hidden_layers", None)
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    inside = set(decoder.modules())  # leaves out vision towers and the like
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and module in inside:
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of {count} decoder blocks")


def _block_path(model: PreTrainedModel, layer: int) -> str:
    """The dotted name of block `layer`. Raises ValueError if it is absent or holds experts."""
    name, blocks = _decoder_blocks(model)
    count = len(blocks)
    if not 0 <= layer < count:
        raise ValueError(
            f"layer {layer} does not exist: this model has {count} decoder layers, 0 to {count - 1}"
        )
    for part, module in blocks[layer].named_modules():
        if "expert" in f"{part} {type(module).__name__}".lower():
            where = f"{name}.{layer}.{part}"
            raise ValueError(f"layer {layer} is a mixture of experts ({where}): not supported")
    return f"{name}.{layer}"


def _find_site(model: PreTrainedModel, block: str) -> _Site:
    """The FFN of the block. Raises ValueError if it has none which a neuron can be added to."""
    parts = [part for part, _ in model.get_submodule(block).named_children()]
    sites = [site for part in parts if (site := _site_at(model, f"{block}.{part}"))]
    if not sites:
        raise ValueError(f"{block} has no decoder FFN among {', '.join(parts)}")
    # Small projections can look like an FFN: one which is a module of its own comes before linear
    # layers of the block itself (OPT has only these), then the widest.
    return max(sites, key=lambda site: (site.read == site.write, site.width))


def _named_site(model: PreTrainedModel, block: str, path: str) -> _Site:
    """The FFN which a module_template, filled in as `path`, names. Raises ValueError."""
    exists = path in dict(model.named_modules())
    site = _site_at(model, path) if exists else None
    if site is None:
        problem = "is not an FFN, nor a linear layer of one" if exists else "does not exist"
        default = _find_site(model, block).write
        raise ValueError(f"module_template: {path!r} {problem}; by default it is {default!r}")
    return site


def _site_at(model: PreTrainedModel, path: str) -> _Site | None:
    """The site at an FFN, or at a linear layer of one; None if `path` names neither.

    An FFN has linear layers D -> inner -> D: one up (plain), two (gated), or one of twice the
    width (gated and fused, as in Phi-3). Raises ValueError if it adds the residual itself.
    """
    hidden = _text_config(model).hidden_size
    by_layer = _linear_shape(model.get_submodule(path)) is not None
    place = path.rpartition(".")[0] if by_layer else path
    ffn = model.get_submodule(place)
    linears = {n: shape for n, child in ffn.named_children() if (shape := _linear_shape(child))}
    # OPT's blocks and recurrent mixers have such layers too, but more weight matrices beside them.
    owners = {n.partition(".")[0] for n, p in ffn.named_parameters() if p.dim() > 1}
    if "attention" in type(ffn).__name__.lower() or (not by_layer and owners - set(linears)):
        return None
    plain, gated, fused = [(hidden, 1)], [(hidden, 1)] * 2, [(hidden, 2)]
    for down, (inner, out) in reversed(linears.items()):  # the last one: inner == D is ambiguous
        ups = [name for name in linears if name != down]
        ratios = [(linears[name][0], linears[name][1] / inner) for name in ups]
        if out == hidden and ratios in (plain, gated, fused):
            break
    else:
        return None
    parameters = list(inspect.signature(type(ffn).forward).parameters.values())[1:]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    if len(needed) > 1 and by_layer:
        return None
    if len(needed) > 1:
        raise ValueError(
            f"{place} ({type(ffn).__name__}) takes {' and '.join(needed)}: an FFN which adds the "
            "residual itself is not supported"
        )
    read, write = (f"{place}.{ups[0]}", f"{place}.{down}") if by_layer else (place, place)
    return _Site(read, write, gated=ratios != plain, width=inner)


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of nn.Linear, its quantised and LoRA kin and Conv1D; None of others."""
    inputs = getattr(module, "in_features", getattr(module, "nx", None))
    outputs = getattr(module, "out_features", getattr(module, "nf", None))
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def _text_config(model: PreTrainedModel) -> Any:
    """The config of the language model, also where that is a part of a multimodal one."""
    return model.config.get_text_config(decoder=True)
