"""The feed-forward network (FFN) or mixture of experts of a decoder block, for any model family.

It is found by its structure, two or three linear layers from the hidden size and back to it, or a
module with experts inside, so no list of model families is needed.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn

from meg_editor.lm.protocols import CausalLM


class FFN(NamedTuple):
    """Modules of the FFN of a decoder block, by dotted name.

    `read` and `write` are both the FFN module if there is one. If the linear layers are children of
    the block (OPT) or given by a template, `read` is the first and `write` the last of them.

    Attributes:
        read: module whose input is the FFN's input.
        write: module whose output is the FFN's output.
        gated: whether it has a gate (SwiGLU, GeGLU).
        width: inner size, between the linear layers.
        ups: linear layers D -> inner: one, or two if gated and not fused.
        down: linear layer inner -> D.
    """

    read: str
    write: str
    gated: bool
    width: int
    ups: tuple[str, ...]
    down: str


class FFNModules(NamedTuple):
    """Where the FFN or mixture of experts of a decoder block begins and ends, by dotted name.

    Attributes:
        read: module whose input is its input.
        write: module whose output is its output.
        gated: whether it has a gate; of a mixture of experts True.
    """

    read: str
    write: str
    gated: bool


def find_ffn_modules(model: CausalLM, layer: int, module_template: str | None = None) -> FFNModules:
    """The FFN of decoder block `layer` as a whole, also if it is a mixture of experts.

    Args:
        layer: index of the block, from 0.
        module_template: such as "model.layers.{}.mlp" (EasyEdit's mlp_module_tmp); default: by
            structure.

    Raises:
        ValueError: a template which names no FFN; else as `find_ffn`, but not for mixtures of
            experts.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> find_ffn_modules(model, 2)
        FFNModules(read='model.layers.2.mlp', write='model.layers.2.mlp', gated=True)
    """
    block = block_name(model, layer)
    experts = _mixture_of_experts(model, block)
    if experts is not None and module_template in (None, experts.replace(f".{layer}.", ".{}.")):
        return FFNModules(experts, experts, gated=True)
    if module_template is None:
        ffn = _widest_ffn(model, block)
        return FFNModules(ffn.read, ffn.write, ffn.gated)
    if "{}" not in module_template:
        raise ValueError(f"module_template {module_template!r} has no {{}} for the layer")
    path = module_template.replace("{}", str(layer))
    exists = path in dict(model.named_modules())
    if exists and (named := _ffn_at(model, path)):
        return FFNModules(named.read, named.write, named.gated)
    problem = "is not an FFN, nor a linear layer of one" if exists else "does not exist"
    default = experts or _widest_ffn(model, block).write
    raise ValueError(f"module_template: {path!r} {problem}; by default it is {default!r}")


def find_ffn(model: CausalLM, layer: int) -> FFN:
    """Linear layers of the FFN of decoder block `layer`, found by its structure.

    Args:
        layer: index of the block, from 0.

    Raises:
        ValueError: no such layer, or a block without a usable FFN: a mixture of experts, which only
            the neuron is added to (`find_ffn_modules`), FFNs which add the residual (Bloom, MPT),
            recurrent blocks without one (Mamba).

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> find_ffn(model, 2).down
        'model.layers.2.mlp.down_proj'
    """
    block = block_name(model, layer)
    if (experts := _mixture_of_experts(model, block)) is not None:
        raise ValueError(
            f"layer {layer} is a mixture of experts ({experts}): no linear layer of it is the one "
            "which every token passes; choose a layer without experts, or edit with neurons (MeG)"
        )
    return _widest_ffn(model, block)


def decoder_blocks(model: CausalLM) -> tuple[str, nn.ModuleList]:
    """Dotted name of the list of decoder blocks, and the list.

    Raises:
        ValueError: not a decoder LM of transformers.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> name, blocks = decoder_blocks(model)
        >>> name, len(blocks)
        ('model.layers', 4)
    """
    if not hasattr(model, "get_decoder"):
        raise ValueError(f"expected a transformers language model, got {type(model).__name__}")
    count = getattr(text_config(model), "num_hidden_layers", None)
    decoder: nn.Module = model.get_decoder()
    inside = set(decoder.modules())  # leaves out vision towers and the like
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and module in inside:
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of {count} decoder blocks")


def decoder_of(model: CausalLM) -> nn.Module:
    """The decoder, which gives last hidden states: `get_decoder()`, where that is one.

    Llama 4's gives the whole model.
    """
    decoder: Any = model.get_decoder()
    inner = getattr(decoder, "model", None)
    return inner if decoder is model and isinstance(inner, nn.Module) else decoder


def last_hidden_states(model: CausalLM, input_ids: Tensor) -> Tensor:
    """(B, T, D) last hidden states of the decoder for (B, T) input ids, without a cache."""
    outputs: Any = decoder_of(model)(input_ids=input_ids, use_cache=False)
    # With return_dict=False in the config they are a plain tuple.
    hidden: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs.last_hidden_state
    return hidden


def attention_name(model: CausalLM, layer: int) -> str:
    """Dotted name of the attention module of decoder block `layer`.

    Raises:
        ValueError: no child of the block has "attention" in its class name.
    """
    block = block_name(model, layer)
    parts = dict(model.get_submodule(block).named_children())
    for part, module in parts.items():
        if "attention" in type(module).__name__.lower():
            return f"{block}.{part}"
    raise ValueError(f"{block} has no attention among {', '.join(parts)}")


def block_name(model: CausalLM, layer: int) -> str:
    """Dotted name of decoder block `layer`.

    Raises:
        ValueError: no such layer.
    """
    name, blocks = decoder_blocks(model)
    count = len(blocks)
    if not 0 <= layer < count:
        raise ValueError(
            f"layer {layer} does not exist: this model has {count} decoder layers, 0 to {count - 1}"
        )
    return f"{name}.{layer}"


def _mixture_of_experts(model: CausalLM, block: str) -> str | None:
    """The child of a block which has experts inside and takes hidden states alone, if any.

    In Gemma 4, whose experts are children of the block, the dense FFN beside them is the FFN.
    """
    for part, child in model.get_submodule(block).named_children():
        is_attention = "attention" in type(child).__name__.lower()
        inside = any(
            "expert" in f"{name} {type(module).__name__}".lower()
            for name, module in child.named_modules()
            if name
        )
        if inside and not is_attention and len(_needed_arguments(child)) == 1:
            return f"{block}.{part}"
    return None


def _needed_arguments(module: nn.Module) -> list[str]:
    """Names of the arguments without a default of a module's forward pass."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return [p.name for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]


def _widest_ffn(model: CausalLM, block: str) -> FFN:
    """The widest FFN among the children of a block. Raises ValueError if it has none."""
    parts = [part for part, _ in model.get_submodule(block).named_children()]
    ffns = [ffn for part in parts if (ffn := _ffn_at(model, f"{block}.{part}"))]
    if not ffns:
        raise ValueError(f"{block} has no decoder FFN among {', '.join(parts)}")
    # Small projections can look like an FFN: one which is a module of its own comes before linear
    # layers of the block itself (OPT has only these), then the widest.
    return max(ffns, key=lambda ffn: (ffn.read == ffn.write, ffn.width))


def _ffn_at(model: CausalLM, path: str) -> FFN | None:
    """The FFN at `path`, or which the linear layer there is a part of; None if neither.

    An FFN has linear layers D -> inner -> D: one up (plain), two (gated), or one of twice the
    width (gated and fused, as in Phi-3). Raises ValueError if it adds the residual itself.
    """
    hidden = text_config(model).hidden_size
    by_layer = _linear_shape(model.get_submodule(path)) is not None
    parent = path.rpartition(".")[0] if by_layer else path
    ffn = model.get_submodule(parent)
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
    needed = _needed_arguments(ffn)
    if len(needed) > 1 and by_layer:
        return None
    if len(needed) > 1:
        raise ValueError(
            f"{parent} ({type(ffn).__name__}) takes {' and '.join(needed)}: an FFN which adds the "
            "residual itself is not supported"
        )
    inside = [f"{parent}.{name}" for name in (*ups, down)]
    read, write = (inside[0], inside[-1]) if by_layer else (parent, parent)
    return FFN(read, write, ratios != plain, inner, tuple(inside[:-1]), inside[-1])


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of nn.Linear, its quantised and LoRA kin and Conv1D; None of others."""
    inputs = getattr(module, "in_features", getattr(module, "nx", None))
    outputs = getattr(module, "out_features", getattr(module, "nf", None))
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def text_config(model: CausalLM) -> Any:
    """Config of the language model, also of one inside a multimodal model."""
    return model.config.get_text_config(decoder=True)
