"""Edits moved between models: from another folder, and to another base."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from meg_editor.collection.checks import check_lengths
from meg_editor.edits.change import Change
from meg_editor.edits.conflicts import OnConflict
from meg_editor.edits.edit import Edit
from meg_editor.edits.edition import Edition, Rows
from meg_editor.edits.replay import gathered
from meg_editor.generators import NeuronBank
from meg_editor.lm.devices import input_device
from meg_editor.lm.neuron import NeuronSpec, count_layers, middle_layer
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.reference import WrongModelError
from meg_editor.model.routed_model import check_unedited
from meg_editor.model.saved.listing import saved_edits
from meg_editor.model.saved.loading import local_folder
from meg_editor.requests.request import only_edits
from meg_editor.runtime.tensors import chunks
from meg_editor.runtime.torch_defaults import torch_defaults

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel

_CHUNK = 256  # edits which are asked at once
_SHOWN = 3


@dataclass(frozen=True, repr=False)
class Reattached:
    """What became of edits on another base; its repr is a line.

    Attributes:
        held: edits whose neuron gives the target there too.
        collected: edits whose neuron was collected anew.
        not_learned: of these, the prompts whose neuron does not give the target.

    Example:
        >>> Reattached((), (Edit("The capital of France is", "Lima"),), ())
        0 edits held, 1 collected anew ('The capital of France is')
    """

    held: tuple[Edit, ...]
    collected: tuple[Edit, ...]
    not_learned: tuple[str, ...]

    def __repr__(self) -> str:
        prompts = ", ".join(repr(edit.prompt) for edit in self.collected[:_SHOWN])
        names = f" ({prompts}{', …' if len(self.collected) > _SHOWN else ''})" if prompts else ""
        failed = f", {len(self.not_learned)} not learned" if self.not_learned else ""
        return f"{len(self.held)} edits held, {len(self.collected)} collected anew{names}{failed}"


def merge(model: MeGModel, folder: str | Path, on_conflict: OnConflict) -> Change:
    """Add the edits of another saved folder; see `MeGModel.merge`."""
    folder, mode = local_folder(folder), model.training
    try:
        other = type(model).from_pretrained(folder, base=model.base, tokenizer=model.tokenizer)
    except WrongModelError:  # edits of another base: their neurons do not serve here
        return model._add(only_edits(saved_edits(folder)), on_conflict, "merge")
    model.train(mode)  # a model is loaded for answering
    requests = only_edits(other.edits)
    known: dict[str, Rows] = {}
    template = model.hparams.prompt_template == other.hparams.prompt_template
    if other.spec == model.spec and template:
        whole = other.edition.rows(range(len(requests)))
        known = {edit.id: gathered([(whole, row)]) for row, edit in enumerate(other.edits)}
    return model._add(requests, on_conflict, "merge", known)


@torch_defaults()
def reattach(
    model: MeGModel, base: CausalLM, tokenizer: Tokenizer | None
) -> tuple[MeGModel, Reattached]:
    """The edits on another base; see `MeGModel.reattach`."""
    check_unedited(base, "base")
    if model.index.state_weight:
        raise ValueError(
            "these edits are found by hidden states of their base (gate_state_weight > 0), which "
            "another base does not have: edit it anew with the file that `export` writes"
        )
    name = str(getattr(base, "name_or_path", "") or model.hparams.model_name)
    hparams = model.hparams.changed(model_name=name)
    if model.spec.layer >= count_layers(base):
        hparams = hparams.changed(layers=[middle_layer(base)])
    spec = NeuronSpec.from_hparams(base, hparams)
    edition = model.edition
    if spec != model.spec:  # neurons of another place or size do not serve
        hparams = hparams.changed(generator="bank")
        index = edition.index
        index = index.changed(torch.tensor([], dtype=torch.long), index.anchors[:0], [])
        edition = Edition((), edition.gate, index, NeuronBank(index.anchors.shape[1], spec.size, 0))
    parts = (model.encoder, edition, model.runtime, model.verifier)
    if input_device(base) != input_device(model.base):  # a model takes its parts to its device
        parts = copy.deepcopy(parts)
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    moved = type(model)(base, tokenizer, hparams, spec, *parts).eval()
    right = [
        each
        for rows in chunks(len(moved.edits), _CHUNK)
        for each in moved._rightness(moved.edition.neurons(rows), rows)
    ]
    holds = [min(each) == 2 for each in right]
    held = tuple(edit for edit, yes in zip(moved.edits, holds, strict=True) if yes)
    kept = {edit.id for edit in held}
    again = [edit for edit in model.edits if edit.id not in kept]
    failed: tuple[str, ...] = ()
    if again:
        check_lengths(base, moved._tokenizer, again, hparams)
        made = [replace(edit, by="reattach", stored=True) for edit in again]
        added, failed = moved._collected(made, {})
        failing = [row for row, yes in enumerate(holds) if not yes]
        moved._put_in_force(moved.edition.changed(failing, added))
    moved.compact()
    return moved, Reattached(held, tuple(again), failed)
