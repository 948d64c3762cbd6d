"""apply_meg_to_model: MeG with the signature of EasyEdit's methods."""

from __future__ import annotations

import copy as copying
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.fitting.pipeline import fit
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest, only_edits
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import ArtifactStore

# A neuron serves in the place it was collected for; facts are collected anew for another.
_PLACE = ("layers", "mlp_module_tmp", "prompt_template")


def apply_meg_to_model(
    model: Any,
    tok: Any,
    requests: Sequence[EditRequest | Mapping[str, Any]],
    hparams: MeGHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    pseudo: Sequence[EditRequest] | None = None,
    calibration: Sequence[EditRequest] | None = None,
    encoder: TextEncoder | None = None,
    store: ArtifactStore | None = None,
    runtime: RuntimeConfig | None = None,
    **kwargs: Any,
) -> tuple[MeGModel, dict[str, Tensor]]:
    """Edit `model`, an unedited one or one edited by MeG before.

    In a model that is edited already the new facts join the old ones in one new wrapper around
    the same base; where a prompt was edited before, the new target replaces the old one. Of each
    request only `prompt`, `target_new` and `subject` are used: `rephrase_prompt`, `locality` and
    `portability` are for evaluation, and are never fitted on.

    Args:
        copy: leave the base model alone even for the hook, by editing a copy of it.
        return_orig_weights, keep_original_weight: accepted for EasyEdit's sake; no weight of the
            model is ever changed.
        pseudo, calibration, encoder, store, runtime: see `meg_editor.fitting.pipeline.fit`.
        kwargs: what EasyEdit passes to methods which need it (train_ds); ignored.

    Returns:
        The edited model, and the weights to restore: none.

    Raises:
        TypeError: `hparams` are those of another method.
        Everything `fit` raises. The model given stays as it was.
    """
    if not isinstance(hparams, MeGHyperParams):
        raise TypeError(
            f"expected MeGHyperParams, got {type(hparams).__name__}; load them with "
            "MeGHyperParams.from_hparams(path)"
        )
    if not isinstance(hparams.model_name, str):  # EasyEdit's pair of model and tokenizer
        name = str(getattr(model, "name_or_path", "") or "")
        hparams = _named(hparams, name)
    new = only_edits(requests)
    kept: list[EditRequest] = []
    earlier: dict[EditRequest, Tensor] = {}
    base = model
    if isinstance(model, MeGModel):
        base = model.base
        replaced = {request.key for request in new}
        kept = [edit for edit in model.edits if edit.key not in replaced]
        if all(getattr(model.hparams, name) == getattr(hparams, name) for name in _PLACE):
            neurons = model.collected
            if neurons is None:  # a model from disk: what its generator gives is as good
                neurons = model.generator.generate(model.anchors).cpu()
            known = dict(zip(model.edits, neurons, strict=True))
            earlier = {edit: known[edit] for edit in kept}
    if copy:
        base = copying.deepcopy(base)
    edited, _ = fit(
        base,
        tok,
        [*kept, *new],
        hparams,
        pseudo=pseudo,
        calibration=calibration,
        encoder=encoder,
        earlier=earlier,
        store=store,
        runtime=runtime,
    )
    return edited, {}


def _named(hparams: MeGHyperParams, name: str) -> MeGHyperParams:
    fields = {f.name: getattr(hparams, f.name) for f in dataclasses.fields(hparams)}
    return MeGHyperParams(**{**fields, "model_name": name})
