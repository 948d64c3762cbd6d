"""A model before a method changes it, so that every method starts from the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meg_editor.lm.protocols import CausalLM
from meg_editor.runtime.tensors import bits

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class WeightSnapshot:
    """A copy of all parameters in host memory, from which a model is restored bit for bit.

    So are the modules themselves, where a method put another one in the place of one, their modes
    (training or evaluation), a `forward` of their own, and their hooks. Buffers are not.

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
        self._modules = [(module, _ModuleState.of(module)) for module in model.modules()]

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
        for module, state in self._modules:
            state.restore(module)
        parameters = dict(self._model.named_parameters())
        for name, value in (originals or {}).items():
            if name in parameters and parameters[name].shape == value.shape:
                parameters[name].copy_(value)
        left = self.changed()
        for name in left:
            if name in parameters:
                parameters[name].copy_(self._before[name][0])
        for name, (_, requires_grad) in self._before.items():
            if name in parameters:
                parameters[name].requires_grad_(requires_grad)
                parameters[name].grad = None
        return left


@dataclass(frozen=True)
class _ModuleState:
    """What a method may have changed of a module beside its parameters."""

    children: dict[str, torch.nn.Module | None]
    training: bool
    forward: Any  # where it is set on the module itself
    hooks: set[tuple[str, int]]

    @classmethod
    def of(cls, module: torch.nn.Module) -> _ModuleState:
        own = vars(module).get("forward")
        return cls(dict(module._modules), module.training, own, _hooks(module))

    def restore(self, module: torch.nn.Module) -> None:
        module._modules.clear()
        module._modules.update(self.children)
        module.training = self.training
        if vars(module).get("forward") is not self.forward:
            vars(module).pop("forward", None)
            if self.forward is not None:
                vars(module)["forward"] = self.forward
        for kind, number in _hooks(module) - self.hooks:
            del getattr(module, kind)[number]


def _hooks(module: torch.nn.Module) -> set[tuple[str, int]]:
    return {(kind, number) for kind in _HOOKS for number in getattr(module, kind)}


def _bits(value: Tensor) -> Tensor:
    return bits(value.detach().cpu().contiguous())
