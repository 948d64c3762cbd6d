"""Fingerprints of model weights: a sample of every parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from meg_editor.lm.protocols import CausalLM

_VALUES = 4  # values stored of each parameter
_SUMMED = 512  # further values, of which the sum is stored


def fingerprint(model: CausalLM | nn.Module) -> dict[str, list[float]]:
    """Sample of every parameter: name -> four of its values and the sum of up to 512 more.

    A merged LoRA, a MEMIT edit or one fine-tuned matrix changes it.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = fingerprint(layer)
        >>> _ = layer.weight.data.add_(1.0)
        >>> same_model(before, fingerprint(layer))
        False
    """
    sample = {}
    for name, parameter in present_parameters(model, [n for n, _ in model.named_parameters()]):
        flat = parameter.detach().flatten()
        spread = flat[:: max(1, flat.numel() // _SUMMED)][:_SUMMED]
        # In integers: in float32, the last index of GPT-2's embeddings is one too large.
        indices = [(flat.numel() - 1) * i // (_VALUES - 1) for i in range(_VALUES)]
        # fsum: the same on every device and processor.
        sample[name] = [*flat[indices].double().tolist(), math.fsum(spread.double().tolist())]
    return sample


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
