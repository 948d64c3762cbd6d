"""A second model which shares every weight with the first."""

from __future__ import annotations

import copy
from typing import Any


def shared_clone(model: Any) -> Any:
    """Modules of its own, the same tensors: what is hooked into the clone leaves `model` alone."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
