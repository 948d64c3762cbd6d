"""Finished fitting stages, kept so that an interrupted run resumes after them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """The result of a stage.

    Attributes:
        tensors: everything the stage produced.
        key: a digest of everything it was made from.
        seconds: how long it took when it ran.
        resumed: whether it was found instead of run.
    """

    tensors: Tensors
    key: str
    seconds: float
    resumed: bool


class StageStore:
    """Runs each stage at most once for the same inputs.

    Args:
        folder: where results are kept as safetensors; None keeps them in memory only.
        recent: how many results, the latest used ones, stay in memory.
    """

    def __init__(self, folder: Path | None = None, recent: int = 8) -> None:
        self.folder, self.recent = folder, recent
        self.seconds_saved = 0.0  # what the stages took that were found instead of run
        self._memory: dict[str, Stage] = {}

    def run(self, name: str, inputs: Any, compute: Callable[[], Tensors]) -> Stage:
        """`compute()`, or its result from an earlier run with equal `inputs` (JSON types)."""
        key = digest([name, inputs])
        if key in self._memory:
            return self._remember(key, self._memory[key])
        path = self.folder / f"{name}-{key}.safetensors" if self.folder else None
        if path and path.exists():
            stage = _read(path, key)
            self.seconds_saved += stage.seconds
        else:
            start = time.perf_counter()
            tensors = {entry: value.cpu().contiguous() for entry, value in compute().items()}
            stage = Stage(tensors, key, time.perf_counter() - start, resumed=False)
            if path:
                _write(path, stage)
        return self._remember(key, stage)

    def _remember(self, key: str, stage: Stage) -> Stage:
        self._memory.pop(key, None)
        self._memory[key] = stage
        while len(self._memory) > self.recent:
            del self._memory[next(iter(self._memory))]
        return stage


def digest(parts: Any) -> str:
    """Of JSON types, and of anything else by its text."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _checksum(tensors: Tensors) -> str:
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode())
        flat = tensors[name].contiguous().view(-1).view(torch.uint8)
        whole.update(flat.numpy().tobytes())
    return whole.hexdigest()


def _read(path: Path, key: str) -> Stage:
    try:
        with safe_open(path, "pt") as file:
            tensors = {entry: file.get_tensor(entry) for entry in file.keys()}
            told = file.metadata()
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to run its stage again") from error
    if told.get("sha256") != _checksum(tensors):
        raise ValueError(
            f"{path} is damaged: its checksum is another one; delete it to run its stage again"
        )
    return Stage(tensors, key, float(told["seconds"]), resumed=True)


def _write(path: Path, stage: Stage) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    try:
        told = {"seconds": str(stage.seconds), "sha256": _checksum(stage.tensors)}
        save_file(stage.tensors, unfinished, told)
        os.replace(unfinished, path)  # all or nothing: Ctrl-C leaves no half-written stage
    except SafetensorError as error:
        raise OSError(f"cannot keep a finished stage at {path}: {error}; free space") from error
    finally:
        unfinished.unlink(missing_ok=True)
