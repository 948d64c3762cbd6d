"""A fitting stage: computed once, stored, and loaded again while nothing it reads has changed."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import Artifact, ArtifactStore, Tensors, digest
from meg_editor.runtime.processes import Processes
from meg_editor.runtime.progress import progress_stage


@dataclass(frozen=True)
class FitContext:
    """What all stages of one fit share.

    Attributes:
        spec: the neuron's place in `model`.
        edits: the N facts.
        pseudo: facts with rephrases, none of them edited.
        calibration: further facts with rephrases and locality prompts, none of them edited.
        store: where finished stages are kept.
        prepared: where those are kept which depend on no edit, for every later fit.
        processes: who shares the work.
    """

    model: CausalLM
    tokenizer: Tokenizer
    spec: NeuronSpec
    edits: Sequence[EditRequest]
    pseudo: Sequence[EditRequest]
    calibration: Sequence[EditRequest]
    hparams: MeGHyperParams
    runtime: RuntimeConfig
    store: ArtifactStore
    prepared: ArtifactStore
    processes: Processes

    @property
    def background(self) -> list[str]:
        """Prompts which are not edited."""
        return [fact.prompt for fact in self.pseudo]

    def model_key(self) -> list[Any]:
        """What identifies the LM in a key, and how its answers end."""
        generation = getattr(self.model, "generation_config", None)
        return [
            fingerprint(self.model),
            str(self.model.dtype),
            self.spec.to_dict(),
            config_key(self.model.config),
            None if generation is None else config_key(generation),
            self.tokenizer.eos_token_id,
            self.runtime.collection_bfloat16,
        ]

    def tokens_key(self, facts: Sequence[EditRequest]) -> str:
        """Digest of the tokens of everything facts hold."""
        return tokens_key(self.tokenizer, facts)


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
    settings: ClassVar[tuple[str, ...]]
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
        store, processes = self.context.store, self.context.processes
        inputs = [self.hparams.to_dict(), *self.inputs()]
        start = time.perf_counter()
        with progress_stage(self.label or self.name):
            return self._run(store, processes, inputs, start)

    def _run(
        self, store: ArtifactStore, processes: Processes, inputs: list[Any], start: float
    ) -> Artifact:
        if not self.together:
            return processes.once(lambda: store.run(self.name, inputs, self._computed(inputs)))
        if (stored := processes.once(lambda: store.find(self.name, inputs))) is not None:
            return stored
        tensors = self.compute()
        return processes.once(lambda: store.keep(self.name, inputs, tensors, start))

    def _computed(self, inputs: list[Any]) -> Callable[[], Tensors]:
        if not self.reusable:
            return self.compute
        return lambda: self.context.prepared.run(self.name, inputs, self.compute).tensors


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


def config_key(config: Any) -> str:
    """Digest of a config of transformers, without where it came from."""
    origin = ("_name_or_path", "_commit_hash", "transformers_version")
    return digest({key: v for key, v in config.to_dict().items() if key not in origin})


def tokens_key(tokenizer: Tokenizer, facts: Sequence[EditRequest]) -> str:
    """Digest of the tokens of everything facts hold."""
    texts = [
        text
        for fact in facts
        for text in (fact.prompt, fact.target_new, *fact.rephrases, *fact.locality_prompts)
    ]
    return digest([list(row) for row in tokenizer(texts)["input_ids"]] if texts else [])


def facts_key(facts: Sequence[EditRequest]) -> str:
    """Digest of everything facts hold."""
    return digest(
        [[f.prompt, f.target_new, f.subject, f.rephrases, f.locality_prompts] for f in facts]
    )


def tensor_key(tensor: Tensor) -> str:
    """Digest of every bit of a tensor on the CPU."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:24]
