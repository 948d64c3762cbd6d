"""Edits that arrive one after another: a chunk edits the model that earlier ones left behind."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from meg_editor.baselines.accumulation import extend, has_memory
from meg_editor.baselines.alphaedit import AlphaEditHyperParams
from meg_editor.baselines.core.contexts import context_prefixes
from meg_editor.baselines.core.hypernetwork import HyperNetworkHyperParams
from meg_editor.baselines.core.settings import CovarianceHyperParams, LocateHyperParams
from meg_editor.baselines.ft import FTHyperParams
from meg_editor.baselines.horen import HoReNHyperParams
from meg_editor.baselines.neuraldb import NeuralDBHyperParams
from meg_editor.baselines.retrieval import RetrievalHyperParams, RetrievalModel
from meg_editor.baselines.ultraedit import UltraEditHyperParams
from meg_editor.benchmark.methods import Method
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.model.meg_model import MeGModel
from meg_editor.runtime.artifacts import Artifact, ArtifactStore, Tensors, digest


class SequentialError(ValueError):
    """A method that cannot take its edits one after another."""


def sequential(method: Method, chunk: int) -> Method:
    """`method`, which gets its edits in chunks of `chunk`, in their order.

    - MeG is fitted on the first chunk; later ones are added live (`MeGModel.add`).
    - A method that writes weights is applied again and again to the model it left behind, with
      what its authors carry from call to call (`carried`).
    - Retrieval, HoReN and NeuralDB add the entries of each chunk to their memory.

    Its `apply` raises SequentialError for any other method, however few chunks there are. Its
    `code` stays the same.

    Raises:
        ValueError: `chunk` is less than 1.

    Example:
        >>> calls = []
        >>> def apply(model, tok, requests, hparams, **kwargs):
        ...     calls.append(list(requests))
        ...     return model, {}
        >>> _ = sequential(Method("mine", apply), 2).apply(None, None, "abc", None)
        >>> calls
        [['a', 'b'], ['c']]
    """

    if chunk < 1:
        raise ValueError(f"sequential: expected chunks of at least 1 edit, got {chunk}")

    @functools.wraps(method.apply)
    def apply(
        model: CausalLM, tok: Tokenizer, requests: Sequence[Any], hparams: Any, **options: Any
    ) -> tuple[Any, dict[str, Tensor]]:
        options |= _state(model, tok, hparams, options)
        edited: Any = None
        originals: dict[str, Tensor] = {}
        for start in range(0, len(requests), chunk):
            part = requests[start : start + chunk]
            if isinstance(edited, MeGModel):
                edited.add(part, on_conflict="keep")  # as a batch does
                continue
            if isinstance(edited, RetrievalModel):
                options["encoder"] = edited.encoder  # loaded once
            result, old = method.apply(model, tok, part, hparams, **options)
            originals = {**old, **originals}  # the values before the first edit
            if not (result is model or isinstance(result, MeGModel) or has_memory(result)):
                raise SequentialError(
                    f"{method.name}: --sequential expected a method that writes weights, can add "
                    "edits, or has a memory that can be joined, got one that gives a "
                    f"{type(result).__name__}: leave it out, or measure it without --sequential"
                )
            if edited is None or result is model:
                edited = result
            else:
                extend(edited, result)
        return edited, originals

    return dataclasses.replace(method, apply=apply)


def carried(method: Method) -> str:
    """What a method carries from chunk to chunk, for the record."""
    if method.name.startswith("easyedit:"):
        return "weights; EasyEdit's own state, but covariance and contexts, starts anew"
    states = (state for kind, state in _CARRIED if isinstance(method.hparams, kind))
    return next(states, "the model it left behind")


_ONCE = "the hypernetwork is trained once, on the unedited model, its statistics start anew"
_MEMORY = "the memory of earlier edits; every chunk is fitted on the unedited model"
_CARRIED: tuple[tuple[type, str], ...] = (
    (MeGHyperParams, "the model fitted on the first chunk, to which later edits are added live"),
    (RetrievalHyperParams, _MEMORY),
    (HoReNHyperParams, _MEMORY),
    (NeuralDBHyperParams, _MEMORY),
    (AlphaEditHyperParams, "weights, null space of the unedited model, keys of earlier edits"),
    (UltraEditHyperParams, "weights, running mean and variance of the features"),
    (HyperNetworkHyperParams, f"weights; {_ONCE}"),
    (CovarianceHyperParams, "weights, covariance and contexts of the unedited model"),
    (FTHyperParams, "weights; the optimiser starts anew"),
)


def _state(
    model: CausalLM, tok: Tokenizer, hparams: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords that the calls of one sequence share. A method ignores those it has no use for."""
    state: dict[str, Any] = {}
    if isinstance(hparams, AlphaEditHyperParams):
        state["earlier"] = {}
    if isinstance(hparams, UltraEditHyperParams):
        state["statistics"] = {}
    if isinstance(hparams, LocateHyperParams):  # sampled once, as the authors do
        state["prefixes"] = context_prefixes(model, tok, hparams.context_prefixes, hparams.seed)
    if isinstance(hparams, CovarianceHyperParams | HyperNetworkHyperParams):
        state["store"] = _StagesOfUnedited(options.get("store") or ArtifactStore())
    return state


class _StagesOfUnedited(ArtifactStore):
    """Covariances and hypernetworks of the model before its first edit, for all calls of a
    sequence: as the authors' code, which computes them once."""

    def __init__(self, store: ArtifactStore) -> None:
        super().__init__()
        self._store, self._first = store, dict[str, Artifact]()

    def run(self, name: str, inputs: Any, compute: Callable[[], Tensors]) -> Artifact:
        """The result of the first call whose inputs are the same but for the model."""
        key = digest([name, {part: value for part, value in inputs.items() if part != "model"}])
        if key not in self._first:
            self._first[key] = self._store.run(name, inputs, compute)
        return self._first[key]
