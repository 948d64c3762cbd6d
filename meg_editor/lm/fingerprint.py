"""Fingerprints of model weights: a sample of every parameter and stored buffer."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Iterator

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from meg_editor.lm.protocols import CausalLM
from meg_editor.runtime.tensors import bits

_VALUES = 4  # kept as they are
_AT_ONCE = 2**24  # values
BUFFER = "buffer:"  # before its name


def fingerprint(model: CausalLM | nn.Module) -> dict[str, list[float]]:
    """Parameter name -> four of its values, and three sums of the bits of all, read as integers:
    as they are, and weighted by row and by column.

    Buffers which a state dict holds count too, as "buffer:" and their name: GPTQ and AWQ keep their
    weights in them.

    Any change of any value changes it: a merged LoRA, a MEMIT edit, one row of the embeddings, and
    two rows or columns that change places. It is the same on every device and processor, offloaded
    or not. Of quantised weights it is that of their payloads: packed integers, in torchao also
    scales and zero points, each by its own name.

    Example:
        >>> model = nn.ParameterDict({"weight": torch.zeros(2, 3)})
        >>> fingerprint(model)
        {'weight': [0.0, 0.0, 0.0, 0.0, 0, 0, 0]}
        >>> model["weight"].data[1, 2] = 1e-9
        >>> fingerprint(model)["weight"][4:]
        [814313567, 1628627134, 2442940701]
    """
    samples = {}
    for name, tensor in stored_tensors(model):
        parts = [(name, tensor)] if name.startswith(BUFFER) else payloads(name, tensor)
        for part, payload in parts:
            samples[part] = sample(payload.detach())
    return samples


def stored_tensors(model: CausalLM | nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Pairs (name, tensor), one at a time: parameters, then as "buffer:…" the buffers which a state
    dict holds and which are not empty."""
    # accelerate's cpu_offload unties what is tied: in memory it counts once.
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    parameters = model.named_parameters()
    names = [name for name, value in parameters if not (value.is_meta and name in tied)]
    yield from present_parameters(model, names)
    for prefix, module in model.named_modules():
        own = [n for n, b in module.named_buffers(recurse=False) if b.numel()]
        stored = [n for n in own if n not in module._non_persistent_buffers_set]
        if stored:
            with align_module_device(module):
                for name in stored:
                    yield BUFFER + f"{prefix}.{name}".lstrip("."), module.get_buffer(name)


def sample(tensor: Tensor) -> list[float]:
    """Four values of a tensor, and the sums of the bits of all."""
    flat = tensor.flatten()
    if not flat.numel():
        return [0.0] * (_VALUES + 3)
    # In integers: as float32, the last place of GPT-2's embeddings is one too far.
    places = [(flat.numel() - 1) * i // (_VALUES - 1) for i in range(_VALUES)]
    width = max(1, tensor.shape[-1]) if tensor.dim() > 1 else 1
    by_row, row = flat.new_zeros((), dtype=torch.int64), 1
    by_column = flat.new_zeros(width, dtype=torch.int64)
    for part in flat.split(max(1, _AT_ONCE // width) * width):
        integers = bits(part.contiguous()).view(-1, width)
        by_row += _weighted(integers.sum(1, dtype=torch.int64), row)
        by_column += integers.sum(0, dtype=torch.int64)
        row += len(integers)
    sums = (by_column.sum(), by_row, _weighted(by_column, 1))
    return [*flat[places].double().tolist(), *map(int, sums)]


def _weighted(sums: Tensor, first: int) -> Tensor:
    """Σ n·s_n, n from `first` on, modulo 2⁶⁴: it sees an order."""
    return (sums * torch.arange(first, first + len(sums), device=sums.device)).sum()


def payloads(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A parameter by its name, or the plain tensors inside it by theirs, if it is quantised.

    Parameters of torchao consist of integers, scales and zero points. The first pass on a CPU packs
    4-bit weights of bitsandbytes in another order, which is undone here.

    Example:
        >>> [name for name, _ in payloads("weight", torch.ones(2))]
        ['weight']
    """
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from payloads(f"{name}.{part}", getattr(tensor, part))
        return
    state = getattr(tensor, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        unpack = importlib.import_module("bitsandbytes.functional")
        # A copy of the state: it is marked as unpacked.
        tensor = unpack._convert_weight_packed_for_cpu_inverse(tensor.data, copy.copy(state))[0]
    yield name, tensor.detach()


def present_parameters(
    model: CausalLM | nn.Module, names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Pairs (name, parameter), one at a time; offloaded ones (device_map) are loaded for it."""
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        with align_module_device(module):
            yield name, model.get_parameter(name)


def same_model(
    ours: dict[str, list[float]], theirs: dict[str, list[float]], *, exact: bool = True
) -> bool:
    """Whether two fingerprints are of the same weights; older ones lack sums and buffers.

    Args:
        exact: False for weights of another precision: equal up to rounding to bfloat16.
    """
    ours, theirs = in_common(ours, theirs)
    if ours.keys() != theirs.keys():
        return False
    if exact:
        pairs = [(ours[name], theirs[name]) for name in ours]
        lengths = [min(len(one), len(other)) for one, other in pairs]
        return all(
            number > _VALUES and one[:number] == other[:number]
            for number, (one, other) in zip(lengths, pairs, strict=True)
        )
    return all(
        min(len(ours[name]), len(theirs[name])) > _VALUES
        and torch.allclose(
            # Rounding errors of a sum do not cancel to the precision of a value.
            torch.tensor(ours[name][:_VALUES]),
            torch.tensor(theirs[name][:_VALUES]),
            rtol=2**-7,
            atol=1e-5,
        )
        for name in ours
    )


def in_common(
    ours: dict[str, list[float]], theirs: dict[str, list[float]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Both without buffers, if one of them has none: it may be older than their fingerprints."""
    if all(any(name.startswith(BUFFER) for name in one) for one in (ours, theirs)):
        return ours, theirs
    return _without_buffers(ours), _without_buffers(theirs)


def _without_buffers(sample: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: values for name, values in sample.items() if not name.startswith(BUFFER)}
