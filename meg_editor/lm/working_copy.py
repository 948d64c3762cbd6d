"""A copy of the LM to optimise on: other precision and attention, the model itself untouched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from meg_editor.runtime.precision import multiplies_bfloat16

_WORTH_IT = 2**25  # weights from which on a copy in bfloat16 pays


def working_copy(model: Any, bfloat16: bool | None = None) -> Any:
    """The model with plain attention, in bfloat16 if asked or worth it; it shares what it can.

    Short sequences need no fused attention: on a CPU its backward pass takes half of the time.

    Args:
        bfloat16: None: where the processor multiplies matrices in it (AMX, AVX512-BF16), a model in
            float32 that is large enough.

    Returns:
        `model` itself where it cannot be copied: quantised, offloaded or spread by accelerate;
        and on a GPU, unless in bfloat16.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> working_copy(model, bfloat16=True).dtype, model.dtype
        (torch.bfloat16, torch.float32)
    """
    if not _is_copyable(model):
        return model
    half = bfloat16 or (bfloat16 is None and _is_worth_it(model))
    on_cpu = {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cpu"}
    if not on_cpu and not half:
        return model
    copied: Any = shared_copy(model)
    if half:
        parameters = model.parameters()
        shared = {id(p): nn.Parameter(_halved(p), requires_grad=False) for p in parameters}
        for module in copied.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, shared[id(parameter)])
        copied.config.dtype = torch.bfloat16
    if on_cpu and hasattr(copied, "set_attn_implementation"):
        copied.set_attn_implementation("eager")
    return copied.eval()


def shared_copy(model: Any) -> Any:
    """A second model with the same tensors: hooks on it leave the first alone.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> copied = shared_copy(model)
        >>> copied is model, copied.weight is model.weight
        (False, True)
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, without_engine(model, {id(tensor): tensor for tensor in tensors}))


def without_engine(model: Any, memo: dict[int, Any]) -> dict[int, Any]:
    """`memo` for a deep copy of the model without its engine, whose threads cannot be copied.

    transformers stores it there after `generate_batch(..., persistent_manager=True)`.
    """
    engine = getattr(model, "_cached_continuous_batching_manager", None)
    return memo if engine is None else {**memo, id(engine): None}


def _is_copyable(model: nn.Module) -> bool:
    """Whether all weights are plain floats in their modules, not quantised and not elsewhere."""
    return not any(hasattr(module, "_hf_hook") for module in model.modules()) and all(
        type(parameter) is nn.Parameter
        and type(parameter.data) is torch.Tensor
        and parameter.is_floating_point()
        and parameter.element_size() > 1  # float8 comes with scales
        and not parameter.is_meta
        for parameter in model.parameters()
    )


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach()


def _is_worth_it(model: nn.Module) -> bool:
    """Whether a copy in bfloat16 makes passes faster: AVX512 halves their time, AMX quarters it."""
    parameters = list(model.parameters())
    return (
        {(p.device.type, p.dtype) for p in parameters} == {("cpu", torch.float32)}
        and sum(p.numel() for p in parameters) >= _WORTH_IT
        and multiplies_bfloat16()
    )
