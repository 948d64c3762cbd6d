"""Tell two models apart by a sample of their weights, whatever precision they are loaded in."""

from __future__ import annotations

import torch
from torch import nn

_SAMPLES = 4


def fingerprint(model: nn.Module) -> dict[str, list[float]]:
    """Parameter name -> a few of its values: the first, middle and last of up to 16 parameters."""
    parameters = list(model.named_parameters())
    stride = max(1, len(parameters) // 16)
    sample = {}
    for name, parameter in parameters[::stride]:
        flat = parameter.detach().flatten()
        places = torch.linspace(0, flat.numel() - 1, _SAMPLES, device=flat.device).long()
        sample[name] = [float(value) for value in flat[places]]
    return sample


def same_model(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> bool:
    """Whether two fingerprints are of the same weights, up to rounding to half precision."""
    if ours.keys() != theirs.keys():
        return False
    return all(
        torch.allclose(torch.tensor(ours[name]), torch.tensor(theirs[name]), rtol=2e-2, atol=1e-4)
        for name in ours
    )
