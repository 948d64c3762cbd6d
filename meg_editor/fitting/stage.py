"""A fitting stage: computed once, stored, and loaded again while nothing it reads has changed."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, cast

from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.context import FitContext
from meg_editor.runtime.artifacts import Artifact, Tensors
from meg_editor.runtime.progress import progress_stage


class Stage(ABC):
    """One of the four fitting stages.

    A run is given the declared settings and no others, so that its key cannot lack one.

    Attributes:
        name: of the stage, in reports and file names.
        label: of its progress, where that is another.
        settings: names of the hyper-parameters its run reads.
        reusable: whether the result depends on no edit, so that later fits take it up.
        together: whether all processes compute at once; otherwise the main one does for all.
    """

    name: ClassVar[str]
    label: ClassVar[str] = ""
    settings: tuple[str, ...]
    together: ClassVar[bool] = False
    reusable: bool = False

    def __init__(self, context: FitContext) -> None:
        self.context = context
        self.hparams = declared(context.hparams, self.settings)

    @abstractmethod
    def inputs(self) -> list[Any]:
        """Everything the run reads beside its settings, as JSON types."""

    @abstractmethod
    def compute(self) -> Tensors:
        """The result of the stage."""

    def run(self) -> Artifact:
        """The stored result for these inputs, else a new one."""
        store, processes, inputs = self.context.store, self.context.processes, self._whole_key()
        start = time.perf_counter()
        with progress_stage(self.label or self.name):
            if self.reusable:
                return processes.once(
                    lambda: store.find(self.name, inputs) or self._prepared(inputs)
                )
            if not self.together:
                return processes.once(lambda: store.run(self.name, inputs, self.compute))
            if (stored := processes.once(lambda: store.find(self.name, inputs))) is not None:
                return stored
            tensors = self.compute()
            return processes.once(lambda: store.keep(self.name, inputs, tensors, start))

    def prepare(self) -> Artifact:
        """The result of a reusable stage as it is kept for later fits, else a new one."""
        with progress_stage(self.label or self.name):
            return self.context.prepared.run(self.name, self._whole_key(), self.compute)

    def _prepared(self, inputs: list[Any]) -> Artifact:
        """What is kept for later fits, stored for this one too, with the time that it took."""
        prepared = self.prepare()
        start = time.perf_counter() - prepared.seconds
        return self.context.store.keep(self.name, inputs, prepared.tensors, start, prepared.resumed)

    def _whole_key(self) -> list[Any]:
        return [self.hparams.to_dict(), *self.inputs()]


class _Declared:
    """Some of a method's hyper-parameters; to read another one is an error."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._values:
            raise AttributeError(f"this stage has not declared that it reads {name!r}")
        return self._values[name]

    def to_dict(self) -> dict[str, Any]:
        return dict(self._values)

    def changed(self, **changes: Any) -> MeGHyperParams:
        return cast(MeGHyperParams, _Declared({**self._values, **changes}))


def declared(hparams: MeGHyperParams, names: Iterable[str]) -> MeGHyperParams:
    """`hparams` with the settings `names` and no others."""
    values = hparams.to_dict()
    return cast(MeGHyperParams, _Declared({name: values[name] for name in sorted(names)}))


def tensor_key(tensor: Tensor) -> str:
    """Digest of every bit of a tensor on the CPU."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:24]
