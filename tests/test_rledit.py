"""RLEdit: against numbers recorded from its authors' code, and against MALMEN, its one-batch case.

tests/parity/record_gradient_methods.py says how they were recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import record_gradient_methods as record
from parity import tiny
from test_token_gradient_baselines import (
    EDITS,
    KINDS,
    PSEUDO,
    ROWS,
    authors_names,
    edits_of,
    examples,
    fill,
    malmen,
    recorded,
    rledit_settings,
    same,
    state,
    worst,
)
from torch import Tensor

from meg_editor.baselines import rledit
from meg_editor.baselines.core.hypernetwork_training import meta_gradients, trained
from meg_editor.baselines.core.meta_batches import MetaBatch
from meg_editor.baselines.core.token_gradients import token_gradients, updates_of
from meg_editor.baselines.malmen import apply_malmen_to_model
from meg_editor.baselines.rledit import RLEditHyperParams, apply_rledit_to_model
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore

# Facts to train on must not be edited.
PSEUDO_OTHERS = [EditRequest("x", "y", rephrases=("z",), locality_prompts=("Who",))]


def sequence(kind: str) -> list[MetaBatch]:
    """What was recorded: three times two facts."""
    rephrases = [(f"I think {prompt}", target) for prompt, _, target in tiny.FACTS]
    whole = edits_of(kind), examples(kind, rephrases), examples(kind, record.LOCALITY)
    return [
        MetaBatch(*(part[start : start + record.AT_ONCE] for part in whole))
        for start in range(0, len(tiny.FACTS), record.AT_ONCE)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_is_the_authors(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch's shifts, made in the model as those before left it, and all gradients."""
    numbers, model = recorded("rledit", kind), tiny.model(kind)
    before = state(model)
    hparams = rledit_settings(kind, reg_coef=0.0)  # their penalty has no gradient
    network = hparams.network(model)
    fill(network)
    named = dict(network.named_parameters())
    authors = authors_names(list(named))
    result: list[dict[str, Tensor]] = []

    def keep(*args: Any) -> Any:
        step = meta_gradients(*args)
        result.append({name.removesuffix(".weight"): v for name, v in step.updates.items()})
        return step

    monkeypatch.setattr(RLEditHyperParams, "network", lambda *_: network)
    monkeypatch.setattr(rledit, "meta_batches", lambda *_: iter(sequence(kind)))
    monkeypatch.setattr(rledit, "meta_gradients", keep)
    start = {name: p.detach().clone() for name, p in named.items()}
    losses = rledit._train(model, None, PSEUDO, hparams)["losses"]
    assert losses.shape == (3, 2) and same(model, before)
    for ours, theirs in zip(result, numbers["shifts"], strict=True):
        shifts = {name: v if kind == "gpt2" else v.T for name, v in ours.items()}
        assert worst(shifts, theirs) < 3e-4
    assert result[2].keys() and not torch.equal(*(next(iter(result[i].values())) for i in (1, 2)))
    gradients = {authors[name]: p.grad for name, p in named.items()}
    # Recorded in float32 on one processor; others round to 0.0013 over the three batches.
    assert worst(gradients, numbers["gradients"]) < 2e-3
    assert any(not torch.equal(start[name], p) for name, p in named.items())  # one step of Adam


def test_the_penalty_is_that_of_the_squared_shifts() -> None:
    """A layer's shift is in proportion to its rate η, so that ∂(c|S|²)/∂η is 2c|S|²/η."""
    model, hparams = tiny.model("llama"), rledit_settings("llama")
    slopes, weight = [], 0.7
    for penalty in (0.0, weight):
        network = hparams.network(model)
        fill(network)
        step = meta_gradients(model, network, sequence("llama")[:1], hparams, 1.0, penalty)
        slopes.append({key: part.rate.grad for key, part in network.networks.items()})
    for name, (key, layer) in network.places.items():
        square = float(step.updates[f"{name}.weight"].square().sum())
        expected = 2 * weight * square / float(network.networks[key].rate[layer].detach())
        assert float(slopes[1][key][layer] - slopes[0][key][layer]) == pytest.approx(expected, 1e-3)


def test_older_batches_count_less() -> None:
    """The gradient is linear in the weights decay^k of the batches."""
    model, hparams, batches = tiny.model("llama"), rledit_settings("llama"), sequence("llama")

    def gradient(measured: list[MetaBatch], decay: float) -> Tensor:
        network = hparams.network(model)
        fill(network)
        meta_gradients(model, network, measured, hparams, decay)
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    newest = gradient(batches[:1], 1.0)
    one, half = (gradient(batches[:2], decay) for decay in (1.0, 0.5))
    assert (one - newest).norm() > 0.1 * newest.norm()
    assert torch.allclose(half, (newest + one) / 2, atol=1e-5 * float(newest.norm()))


@pytest.mark.parametrize("kind", KINDS)
def test_edits_come_one_batch_after_another(kind: str) -> None:
    """By hand: each batch is predicted in the model which the last one left."""
    hparams = rledit_settings(kind, n_epochs=0)
    model, by_hand = tiny.model(kind), tiny.model(kind)
    apply_rledit_to_model(model, tiny.tokenizer(kind), ROWS, hparams, pseudo=PSEUDO_OTHERS)
    network = hparams.network(by_hand)
    for batch in sequence(kind):
        result = token_gradients(by_hand, batch.edits, list(network.places), "ans", record.AT_ONCE)
        network.observe(result)
        shifts = {name: shift.value for name, shift in network.shifts(result).items()}
        with torch.no_grad():
            for name, update in updates_of(by_hand, shifts).items():
                weight = by_hand.get_parameter(name)
                weight.copy_(weight.double() + update)  # rounded once, after the sum
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, by_hand.get_parameter(name), atol=1e-6), name
    assert not same(model, state(tiny.model(kind)))


def test_all_edits_at_once_are_malmen() -> None:
    """With the same untrained network."""
    one, other, tok = tiny.model("llama"), tiny.model("llama"), tiny.tokenizer("llama")
    hparams = rledit_settings("llama", n_epochs=0, n_edits=len(ROWS))
    apply_rledit_to_model(one, tok, ROWS, hparams, pseudo=PSEUDO_OTHERS)
    theirs = malmen("llama", max_iters=0, batch_size_once=record.AT_ONCE)
    apply_malmen_to_model(other, tok, ROWS, theirs, pseudo=PSEUDO_OTHERS)
    assert same(one, state(other))


def test_training_lowers_the_loss_and_is_kept(tmp_path: Path) -> None:
    model, tok = tiny.model("llama"), tiny.tokenizer("llama")
    before = state(model)
    own = {"lr": 1e-3, "meta_lr": 1e-2, "loc_coef": 0.1, "max_grad_norm": 1.0, "reg_coef": 0.0}
    hparams = rledit_settings("llama", n_epochs=14, **own)
    stage = trained(model, tok, PSEUDO, hparams, rledit._train, ArtifactStore(tmp_path))
    losses = stage.tensors["losses"][:, 0].reshape(14, 3).mean(1)
    assert losses[-3:].mean() < 0.9 * losses[0]
    assert same(model, before)
    again = trained(model, tok, PSEUDO, hparams, rledit._train, ArtifactStore(tmp_path))
    assert again.resumed and not stage.resumed


def test_it_needs_rephrases() -> None:
    model, tok = tiny.model("llama"), tiny.tokenizer("llama")
    with pytest.raises(ValueError, match="pseudo: expected facts with rephrases"):
        apply_rledit_to_model(model, tok, EDITS, rledit_settings("llama"), pseudo=[])
