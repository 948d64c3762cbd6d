"""Tell two models apart by a sample of their weights, whatever precision they are loaded in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

_SAMPLES = 4


def fingerprint(model: nn.Module) -> dict[str, list[float]]:
    """Parameter name -> a few of its values: the first, middle and last of up to 16 parameters."""
    names = [name for name, _ in model.named_parameters()]
    stride = max(1, len(names) // 16)
    sample = {}
    for name, parameter in present_parameters(model, names[::stride]):
        flat = parameter.detach().flatten()
        # In integers: as float32, the last place of GPT-2's embeddings is one too far.
        places = [(flat.numel() - 1) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
        sample[name] = [float(value) for value in flat[places]]
    return sample


def present_parameters(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Parameters by name; what a device_map keeps on the CPU or on disk is there for its turn."""
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        with align_module_device(module):
            yield name, model.get_parameter(name)


def same_model(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> bool:
    """Whether two fingerprints are of the same weights, up to rounding to half precision."""
    if ours.keys() != theirs.keys():
        return False
    return all(
        torch.allclose(torch.tensor(ours[name]), torch.tensor(theirs[name]), rtol=2e-2, atol=1e-4)
        for name in ours
    )
