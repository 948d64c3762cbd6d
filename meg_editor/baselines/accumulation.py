"""Memories of methods that change no weight: edits of a later call join those of an earlier one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from meg_editor.baselines.horen import HoReNModel
from meg_editor.baselines.neuraldb import KeyValueMemory
from meg_editor.baselines.retrieval import RetrievalModel


def has_memory(model: Any) -> bool:
    """Whether edits can join those of `model`: it is of retrieval, HoReN or NeuralDB.

    Example:
        >>> has_memory(torch.nn.Linear(2, 2))
        False
    """
    return isinstance(model, RetrievalModel | HoReNModel) or bool(_memories(model))


def extend(earlier: Any, later: Any) -> None:
    """Add the edits of `later` to those of `earlier`, in place; both are of one unedited model.

    Their memories hold one entry per fact, fitted on the unedited model, so joining them is what
    the methods' own lifelong editing does. SCEN has none: its index neurons are trained against
    all other edits, and its features standardised over them.

    Args:
        earlier, later: of one method, with a memory (`has_memory`).
    """
    if isinstance(earlier, RetrievalModel):
        earlier.edits += later.edits
        earlier.anchors = torch.cat([earlier.anchors, later.anchors])
    elif isinstance(earlier, HoReNModel):
        earlier.keys = torch.cat([earlier.keys, later.keys])
        earlier.values = torch.cat([earlier.values, later.values])
    for memory, more in zip(_memories(earlier), _memories(later), strict=True):
        memory.keys = torch.cat([memory.keys, more.keys])
        memory.residuals = torch.cat([memory.residuals, more.residuals])


def _memories(model: Any) -> list[KeyValueMemory]:
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [module for module in modules if isinstance(module, KeyValueMemory)]
