"""A model before a method changes it, so that every method starts from the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from meg_editor.lm.protocols import CausalLM

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class WeightSnapshot:
    """A copy of all parameters in host memory, from which a model is restored bit for bit.

    Each module's mode (training or evaluation) is restored too, and hooks that came are removed.

    A method that fails half-way has handed nothing back, and which weights it changed is known
    only afterwards: all are copied beforehand. It takes as much host memory as the model takes
    (none on a GPU), once for a whole benchmark, since every cell ends with the same weights.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> snapshot = WeightSnapshot(model)
        >>> _ = model.weight.data.zero_()
        >>> snapshot.restore(), snapshot.changed()
        (['weight'], [])
    """

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._before = {
            name: (value.detach().to("cpu", copy=True), value.requires_grad)
            for name, value in model.named_parameters()
        }
        self._modes = {name: module.training for name, module in model.named_modules()}
        self._hooked = {name: _hooks(module) for name, module in model.named_modules()}

    def changed(self) -> list[str]:
        """Names of the parameters which differ by at least one bit."""
        parameters = dict(self._model.named_parameters())
        return [
            name
            for name, (before, _) in self._before.items()
            if name not in parameters or not torch.equal(_bits(before), _bits(parameters[name]))
        ]

    @torch.no_grad()
    def restore(self, originals: Mapping[str, Tensor] | None = None) -> list[str]:
        """Undo every change; `originals` are the old values which a method handed back.

        Returns:
            Names of the parameters which `originals` did not restore.
        """
        parameters = dict(self._model.named_parameters())
        for name, value in (originals or {}).items():
            parameters[name].copy_(value)
        left = self.changed()
        for name in left:
            if name in parameters:
                parameters[name].copy_(self._before[name][0])
        for name, (_, requires_grad) in self._before.items():
            if name in parameters:
                parameters[name].requires_grad_(requires_grad)
                parameters[name].grad = None
        for name, module in self._model.named_modules():
            module.training = self._modes.get(name, False)
            for kind, number in _hooks(module) - self._hooked.get(name, set()):
                del getattr(module, kind)[number]
        return left


@torch.no_grad()
def checksums(model: CausalLM) -> dict[str, int]:
    """Parameter name -> the sum of its bits, read as integers."""
    return {name: int(_bits(value).sum()) for name, value in model.named_parameters()}


def _hooks(module: torch.nn.Module) -> set[tuple[str, int]]:
    return {(kind, number) for kind in _HOOKS for number in getattr(module, kind)}


def _bits(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().view(_INTEGERS[value.element_size()])
