"""Fingerprints of model weights: a sample of every parameter."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Iterator

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from meg_editor.lm.protocols import CausalLM

_VALUES = 4  # kept as they are
_AT_ONCE = 2**24  # values
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: CausalLM | nn.Module) -> dict[str, list[float]]:
    """Parameter name -> four of its values and the sum of the bits of all, read as integers.

    Any change of any value changes it: a merged LoRA, a MEMIT edit, one row of the embeddings. It
    is the same on every device and processor, offloaded or not. Of quantised weights it is that of
    their payloads: packed integers, in torchao also scales and zero points, each by its own name.

    Example:
        >>> model = nn.ParameterDict({"weight": torch.zeros(2, 3)})
        >>> fingerprint(model)
        {'weight': [0.0, 0.0, 0.0, 0.0, 0]}
        >>> model["weight"].data[1, 2] = 1e-9
        >>> fingerprint(model)["weight"][-1]
        814313567
    """
    sample = {}
    for name, parameter in present_parameters(model, [n for n, _ in model.named_parameters()]):
        for part, payload in payloads(name, parameter):
            sample[part] = _sample(payload)
    return sample


def _sample(tensor: Tensor) -> list[float]:
    """Four values of a tensor, and the sum of the bits of all."""
    flat = tensor.flatten()
    # In integers: as float32, the last place of GPT-2's embeddings is one too far.
    places = [(flat.numel() - 1) * i // (_VALUES - 1) for i in range(_VALUES)]
    integers = _INTEGERS[flat.element_size()]
    parts = (part.contiguous().view(integers) for part in flat.split(_AT_ONCE))
    total = sum(int(part.sum(dtype=torch.int64)) for part in parts)
    return [*flat[places].double().tolist(), total]


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
    """Whether two fingerprints are of the same weights.

    Args:
        exact: False for weights of another precision: equal up to rounding to bfloat16.
    """
    if ours.keys() != theirs.keys():
        return False
    if exact:
        return all(ours[name] == theirs[name] for name in ours)
    return all(
        len(ours[name]) == len(theirs[name])
        and torch.allclose(
            # Rounding errors of a sum do not cancel to the precision of a value.
            torch.tensor(ours[name][:_VALUES]),
            torch.tensor(theirs[name][:_VALUES]),
            rtol=2**-7,
            atol=1e-5,
        )
        for name in ours
    )
