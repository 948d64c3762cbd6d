"""A second model which shares every weight with the first."""

from __future__ import annotations

import copy
from typing import Any

from meg_editor.lm.protocols import CausalLM


def shared_clone(model: CausalLM) -> Any:
    """A copy of the modules with the same tensors: hooks on the clone leave `model` alone."""
    buffers = (buffer for module in model.modules() for buffer in module.buffers(recurse=False))
    tensors = [*model.parameters(), *buffers]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
