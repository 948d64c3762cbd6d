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


class ArtifactStore:
    """Runs each stage at most once for the same inputs.

    Args:
        folder: where results are kept as safetensors; None keeps them in memory only.
        recent: how many results, the latest used ones, stay in memory where there is no folder.
    """

    def __init__(self, folder: Path | None = None, recent: int = 32) -> None:
        self.folder, self.recent = folder, recent
        self.seconds_saved = 0.0  # what the stages took that were found instead of run
        self._memory: dict[str, Stage] = {}
        self._found: set[str] = set()

    def run(self, name: str, inputs: Any, compute: Callable[[], Tensors]) -> Stage:
        """`compute()`, or its result from an earlier run with equal `inputs` (JSON types)."""
        start = time.perf_counter()
        return self.find(name, inputs) or self.keep(name, inputs, compute(), start)

    def find(self, name: str, inputs: Any) -> Stage | None:
        """The result of an earlier run, if there is one."""
        key = digest([name, inputs])
        path = self._path(name, key)
        if path is None:
            stage = self._memory.get(key)
            return stage and self._remember(stage)
        if not path.exists():
            return None
        stage = _read(path, key)
        if key not in self._found:
            self._found.add(key)
            self.seconds_saved += stage.seconds
        return stage

    def keep(self, name: str, inputs: Any, tensors: Tensors, start: float) -> Stage:
        """Keep what was computed since `start`, a time of `time.perf_counter`."""
        key = digest([name, inputs])
        tensors = {entry: value.cpu().contiguous() for entry, value in tensors.items()}
        stage = Stage(tensors, key, time.perf_counter() - start, resumed=False)
        if path := self._path(name, key):
            _write(path, stage)
            self._found.add(key)
            return stage
        return self._remember(stage)

    def _path(self, name: str, key: str) -> Path | None:
        return self.folder / f"{name}-{key}.safetensors" if self.folder else None

    def _remember(self, stage: Stage) -> Stage:
        self._memory.pop(stage.key, None)
        self._memory[stage.key] = stage
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
