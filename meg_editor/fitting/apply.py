"""apply_meg_to_model: MeG with the signature of EasyEdit's methods."""

from __future__ import annotations

import copy as copying
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams, check_hparams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.fitting.collection_stage import COLLECTION_SETTINGS
from meg_editor.fitting.pipeline import fit
from meg_editor.fitting.tuning_facts import Facts
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest, only_edits
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import ArtifactStore

_COLLECTION = tuple(name for name in COLLECTION_SETTINGS if name != "seed")


def apply_meg_to_model(
    model: Any,
    tok: Any,
    requests: Sequence[EditRequest | Mapping[str, Any]],
    hparams: MeGHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    pseudo: Facts | None = None,
    calibration: Facts | None = None,
    encoder: TextEncoder | None = None,
    store: ArtifactStore | None = None,
    runtime: RuntimeConfig | None = None,
    **kwargs: Any,
) -> tuple[MeGModel, dict[str, Tensor]]:
    """Edited model, from an unedited one or one edited by MeG before.

    In a model that is edited already the new facts join the old ones in one new wrapper around
    the same base; where a prompt was edited before, the new target replaces the old one. This
    costs their own collection and nothing else, if the settings are those of the earlier edits and
    no facts to tune or calibrate on are given: encoder and gate stay, the new neurons are stored
    (`MeGModel.add`, with the run-time choices of the model). A setting that is null or "auto" is
    taken from the earlier fit. Otherwise all is fitted again but the
    neurons; those that were not learned too, if `collection_*` settings changed. Of each request
    only `prompt`, `target_new` and `subject` are used: `rephrase_prompt`, `locality` and
    `portability` are for evaluation, and are never fitted on.

    Args:
        copy: leave the base model alone even for the hook, by editing a copy of it.
        return_orig_weights, keep_original_weight: accepted for EasyEdit; no weight of the model is
            ever changed.
        pseudo, calibration, encoder, store, runtime: see `meg_editor.fitting.pipeline.fit`.
        kwargs: what EasyEdit passes to methods which need it (train_ds); ignored.

    Returns:
        The edited model, and the weights to restore: none.

    Raises:
        TypeError: `hparams` are those of another method.
        Exception: whatever `fit` raises. The model given stays as it was.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu", encoder_steps=0,
        ...                                 gate_threshold=0.8)
        >>> model, tokenizer = load_model(hparams)
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, weights = apply_meg_to_model(model, tokenizer, facts, hparams)
        >>> edited.answer("The capital of France is"), weights
        (['Lima'], {})
    """
    check_hparams(hparams)
    if not isinstance(hparams.model_name, str):  # EasyEdit's pair of model and tokenizer
        name = str(getattr(model, "name_or_path", "") or "")
        hparams = dataclasses.replace(hparams, model_name=name)
    new = only_edits(requests)
    retained: list[EditRequest] = []
    unlearned: list[str] = []
    earlier: dict[EditRequest, Tensor] = {}
    base = model
    if isinstance(model, MeGModel):
        given = (pseudo, calibration, encoder)
        if all(part is None for part in given) and _goes_on(model, hparams):
            edited = (copying.deepcopy(model) if copy else model.fork()).eval()
            edited.add(new, on_conflict="keep")
            return edited, {}
        base = model.base
        replaced = {request.key for request in new}
        retained = [edit for edit in model.edits if edit.key not in replaced]
        # A neuron serves in the place it was collected for; facts are collected anew for another.
        same_place = NeuronSpec.from_hparams(base, hparams) == model.spec
        if same_place and hparams.prompt_template == model.hparams.prompt_template:
            # A model from disk has no collected neurons: those of its generator are as good.
            neurons = model.generated_neurons() if model.collected is None else model.collected
            known: dict[EditRequest, Tensor] = dict(zip(model.edits, neurons, strict=True))
            failed = set(model.fitted.not_collected) if model.fitted else set()
            failed.update(prompt for change in model.history() for prompt in change.not_learned)
            if all(getattr(model.hparams, name) == getattr(hparams, name) for name in _COLLECTION):
                unlearned = [edit.prompt for edit in retained if edit.prompt in failed]
                failed = set()  # they would fail again
            earlier = {edit: known[edit] for edit in retained if edit.prompt not in failed}
    if copy:
        base = copying.deepcopy(base)
    edited, report = fit(
        base,
        tok,
        [*retained, *new],
        hparams,
        pseudo=pseudo,
        calibration=calibration,
        encoder=encoder,
        earlier=earlier,
        store=store,
        runtime=runtime,
    )
    report.not_collected[:0] = unlearned
    return edited, {}


def _goes_on(model: MeGModel, hparams: MeGHyperParams) -> bool:
    """Whether `hparams` are those of an edited model, apart from what its fit has chosen."""
    ours, theirs = model.hparams.to_dict(), hparams.to_dict()
    chosen = {name for name, value in theirs.items() if value in (None, "auto")}
    chosen |= {"model_name", "device", "gate", "batch_size"}
    similarity = hparams.gate == "verified" and model.verifier is None  # takes its place
    if model.hparams.gate != ("similarity" if similarity else hparams.gate):
        return False
    return all(ours[name] == theirs[name] for name in theirs.keys() - chosen)
