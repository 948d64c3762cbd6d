"""Memories of methods that change no weight: edits of a later call join those of an earlier one."""

from __future__ import annotations

from typing import Any

import torch

from meg_editor.baselines.horen import HoReNModel
from meg_editor.baselines.neuraldb import KeyValueMemory
from meg_editor.baselines.retrieval import RetrievalModel


def extend(earlier: Any, later: Any) -> bool:
    """Add the edits of `later` to those of `earlier`, in place; both are of one unedited model.

    Their memories hold one entry per fact, fitted on the unedited model, so joining them is what
    the methods' own lifelong editing does. SCEN is none of them: its index neurons are trained
    against all other edits, and its features standardised over them.

    Returns:
        Whether it can be done: `earlier` is of retrieval, HoReN or NeuralDB.

    Example:
        >>> extend(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        False
    """
    if isinstance(earlier, RetrievalModel):
        earlier.edits += later.edits
        earlier.anchors = torch.cat([earlier.anchors, later.anchors])
        return True
    if isinstance(earlier, HoReNModel):
        earlier.keys = torch.cat([earlier.keys, later.keys])
        earlier.values = torch.cat([earlier.values, later.values])
        return True
    memories = [module for module in earlier.modules() if isinstance(module, KeyValueMemory)]
    added = [module for module in later.modules() if isinstance(module, KeyValueMemory)]
    for memory, more in zip(memories, added, strict=True):
        memory.keys = torch.cat([memory.keys, more.keys])
        memory.residuals = torch.cat([memory.residuals, more.residuals])
    return bool(memories)
