"""Stored results of stages: an interrupted run resumes after the finished ones."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from meg_editor import __version__
from meg_editor.runtime.cache import (
    DIGITS,
    STAGE_FILE,
    VARIABLE,
    cache_folder,
    not_kept,
    writable_cache_folder,
)
from meg_editor.runtime.files import check_regular, replacing, sweep

Tensors = dict[str, Tensor]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """The stored result of a stage.

    Attributes:
        tensors: the result.
        key: digest of the stage's name and inputs.
        seconds: run time of the stage.
        resumed: whether it was loaded instead of computed.
    """

    tensors: Tensors
    key: str
    seconds: float
    resumed: bool


class ArtifactStore:
    """Results of stages by their inputs: each stage runs once for equal inputs.

    Args:
        folder: folder of the results as safetensors; None: in memory.
        max_bytes: limit in memory; the least recently used are evicted first.

    Attributes:
        seconds_saved: run time of the stages that were loaded from a folder instead of computed.

    Example:
        >>> store = ArtifactStore()
        >>> one = store.run("count", [3], lambda: {"n": torch.arange(3)})
        >>> two = store.run("count", [3], lambda: {"n": torch.arange(9)})
        >>> two.tensors["n"].tolist(), one.key == two.key
        ([0, 1, 2], True)
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = 2**28) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.seconds_saved = 0.0
        self._memory: dict[str, Artifact] = {}
        self._counted: set[str] = set()

    def run(self, name: str, inputs: Any, compute: Callable[[], Tensors]) -> Artifact:
        """Result of `compute()`, or of an earlier run with equal `inputs` (JSON types)."""
        start = time.perf_counter()
        return self.find(name, inputs) or self.keep(name, inputs, compute(), start)

    def find(self, name: str, inputs: Any) -> Artifact | None:
        """Result of an earlier run with equal inputs, or None.

        Raises:
            ValueError: its file is damaged.
        """
        key = digest([name, __version__, inputs])
        path = self.path(name, key)
        if path is None:
            artifact = self._memory.get(key)
            return artifact and self._remember(replace(artifact, resumed=True))
        if check_regular(path, missing_ok=True) is None:
            return None
        artifact = _read(path, key)
        if key not in self._counted:
            self._counted.add(key)
            self.seconds_saved += artifact.seconds
        return artifact

    def keep(
        self, name: str, inputs: Any, tensors: Tensors, start: float, resumed: bool = False
    ) -> Artifact:
        """Store a result; returns it on the CPU, as an earlier run would be found.

        Args:
            start: when it was begun, by `time.perf_counter`.
            resumed: whether it comes from elsewhere, which saved its run time.

        Raises:
            OSError: it cannot be written.
        """
        key = digest([name, __version__, inputs])
        tensors = {entry: value.cpu().contiguous() for entry, value in tensors.items()}
        artifact = Artifact(tensors, key, time.perf_counter() - start, resumed)
        self.seconds_saved += artifact.seconds if resumed else 0.0
        if path := self.path(name, key):
            self._save(path, artifact)
            self._counted.add(key)
            return artifact
        return self._remember(artifact)

    def _save(self, path: Path, artifact: Artifact) -> None:
        try:
            _write(path, artifact)
        except OSError as error:
            what = f"cannot store a finished stage at {path}: {error}"
            raise OSError(error.errno, f"{what}; free space or use another folder") from error

    def path(self, name: str, key: str) -> Path | None:
        """The file of the result of a stage, whether it is there or not; None: in memory."""
        return self.folder / f"{name}-{key}.safetensors" if self.folder else None

    def clear(self) -> None:
        """Delete all stored results, and the folder if it is empty then."""
        self._memory.clear()
        if self.folder is None or not self.folder.is_dir():
            return
        for path in self.folder.glob("*-*.safetensors"):
            if STAGE_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        sweep(self.folder)
        with suppress(OSError):  # not empty: other files
            self.folder.rmdir()

    def _remember(self, artifact: Artifact) -> Artifact:
        self._memory.pop(artifact.key, None)
        self._memory[artifact.key] = artifact
        while sum(map(_bytes, self._memory.values())) > self.max_bytes and len(self._memory) > 1:
            del self._memory[next(iter(self._memory))]
        return artifact


class CacheStore(ArtifactStore):
    """Results of stages in the cache folder: none of them is needed, as each can be made again.

    What is damaged counts as missing, with a warning; what cannot be written is not kept.

    Args:
        kind: folder inside the cache folder.
        required: whether to keep the results is what the stages are run for: it is then an error
            if they cannot be written, before they are computed.

    Example:
        >>> CacheStore("prepared").run("count", [3], lambda: {"n": torch.arange(3)}).tensors["n"]
        tensor([0, 1, 2])
    """

    def __init__(self, kind: str, *, required: bool = False) -> None:
        super().__init__(cache_folder(kind))
        self.kind, self.required = kind, required

    def run(self, name: str, inputs: Any, compute: Callable[[], Tensors]) -> Artifact:
        """See `ArtifactStore.run`.

        Raises:
            OSError: the result cannot be kept, and that is required.
        """
        start = time.perf_counter()
        if (artifact := self.find(name, inputs)) is not None:
            return artifact
        if self.required:
            writable_cache_folder(self.kind)
        return self.keep(name, inputs, compute(), start)

    def find(self, name: str, inputs: Any) -> Artifact | None:
        """Result of an earlier run with equal inputs, or None."""
        try:
            return super().find(name, inputs)
        except NotADirectoryError:  # writing tells
            return None
        except (ValueError, OSError) as error:
            problem = str(error).partition("; delete it")[0]
            _LOG.warning("the cache folder (%s): %s; it is made again", VARIABLE, problem)
            return None

    def _save(self, path: Path, artifact: Artifact) -> None:
        try:
            _write(path, artifact)
        except OSError as error:
            problem = not_kept(error)
            if self.required:
                raise problem from error
            _LOG.warning("%s; the next fit makes %s again", problem.strerror, path.name)


def _bytes(artifact: Artifact) -> int:
    return sum(value.nbytes for value in artifact.tensors.values())


def digest(parts: Any) -> str:
    """Hash of JSON types; of any other object, of its `str`.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _checksum(tensors: Tensors) -> str:
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode())
        flat = tensors[name].contiguous().view(-1).view(torch.uint8)
        whole.update(flat.numpy().tobytes())
    return whole.hexdigest()


def _read(path: Path, key: str) -> Artifact:
    try:
        with safe_open(path, "pt") as file:
            tensors = {entry: file.get_tensor(entry) for entry in file.keys()}
            metadata = file.metadata()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to run its stage again") from error
    if (metadata or {}).get("sha256") != _checksum(tensors):
        raise ValueError(
            f"{path} is damaged: its checksum is another one; delete it to run its stage again"
        )
    return Artifact(tensors, key, float(metadata["seconds"]), resumed=True)


def _write(path: Path, artifact: Artifact) -> None:
    metadata = {"seconds": str(artifact.seconds), "sha256": _checksum(artifact.tensors)}
    with replacing(path) as file:
        file.write(save(artifact.tensors, metadata))
