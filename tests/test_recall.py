"""Neurons recalled in closed form, what a DiT adds to them, and generated neurons' length."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from meg_editor.config.hparams import HParamsError, MeGHyperParams
from meg_editor.generators import DiTGenerator, MLPGenerator, recall
from meg_editor.generators.recall import Recall

E, P = 16, 50
SMALL = {
    "generator_width": 64,
    "generator_depth": 2,
    "generator_heads": 4,
    "generator_patch_size": 16,
    "generator_steps": 25,
    "generator_epochs": 1,
    "generator_lr": 3e-3,
    "generator_ema": 0.9,
    "generator_batch_size": 64,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(N, E) unit vectors and (N, P) neurons which have nothing to do with them."""
    generator = torch.Generator().manual_seed(seed)
    conditions = F.normalize(torch.randn(count, E, generator=generator), dim=-1)
    return conditions, 0.3 + 0.1 * torch.randn(count, P, generator=generator)


def build(edits: int, **settings: Any) -> DiTGenerator:
    return DiTGenerator.build(MeGHyperParams.from_dict({**SMALL, **settings}), E, P, edits)


@pytest.mark.parametrize(("edits", "features"), [(30, 1000), (200, 120)], ids=["wide", "tall"])
def test_the_readout_is_that_of_ridge_regression(edits: int, features: int) -> None:
    conditions, targets = pairs(edits)
    own = Recall(E, P, edits, features)
    own.solve(conditions, targets)
    made = conditions.double() @ own.projection.double().T + own.offset.double()
    made = F.gelu(made).numpy()
    spread = np.square(made - made.mean(0)).sum() / min(edits, len(own.center))
    ridge = Ridge(alpha=recall._RIDGES[0] * spread)
    wanted = ridge.fit(made, targets.double().numpy()).predict(made)
    got = own(conditions).double().numpy()
    assert np.abs(got - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("edits", [1, 2, 60, 400])
def test_neurons_are_met_where_features_are_enough(edits: int) -> None:
    conditions, targets = pairs(edits)
    own = Recall(E, P, edits, 10_000)
    assert len(own.center) == math.ceil(1.25 * edits)
    own.solve(conditions, targets)
    spread = (targets - targets.mean(0)).norm()
    assert float((own(conditions) - targets).norm()) <= 0.1 * float(spread) + 1e-6


def test_fewer_features_explain_their_share() -> None:
    conditions, targets = pairs(2000)
    spread = (targets - targets.mean(0)).square().sum()
    for features in (200, 600, 1200):
        own = Recall(E, P, 2000, features)
        own.solve(conditions, targets)
        left = (own(conditions) - targets).square().sum()
        assert float(1 - left / spread) == pytest.approx(features / 2000, abs=0.06)


@pytest.mark.parametrize(("edits", "features"), [(30, 1000), (100, 40)], ids=["wide", "tall"])
def test_chunks_change_nothing(edits: int, features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions, targets = pairs(edits)
    whole = Recall(E, P, edits, features)
    parts = Recall(E, P, edits, features)
    parts.load_state_dict(whole.state_dict())
    whole.solve(conditions, targets)
    monkeypatch.setattr(recall, "_CHUNK", 7)
    parts.solve(conditions, targets)
    torch.testing.assert_close(parts(conditions), whole(conditions), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_neurons_which_are_not_finite_are_refused(bad: float) -> None:
    conditions, neurons = pairs(20)
    neurons[3, 4] = bad
    with pytest.raises(FloatingPointError, match="expected finite.*got NaN.*collection_lr"):
        build(20).fit(conditions, neurons)


@pytest.mark.parametrize("features", [16384, 100], ids=["wide", "tall"])
@pytest.mark.parametrize("apart", [0.0, 1e-5, 1e-3])
def test_embeddings_which_are_nearly_the_same_are_borne(apart: float, features: int) -> None:
    conditions, targets = pairs(1500)
    conditions = F.normalize(conditions[:1] + apart * conditions, dim=-1)
    own = Recall(E, P, 1500, features)
    own.solve(conditions, targets)
    made = own(conditions)
    assert bool(made.isfinite().all())
    # No worse than the mean of all, which is all there is to know of edits that are one.
    spread = (targets - targets.mean(0)).norm()
    assert float((made - targets).norm()) < 1.05 * float(spread)


def test_where_recall_suffices_there_is_no_dit() -> None:
    conditions, neurons = pairs(40)
    generator = build(40)
    assert generator.fit(conditions, neurons) == []
    state = generator.state_dict()
    assert not any(name.startswith("network") for name in state)
    relative = (generator.generate(conditions) - neurons).norm() / (neurons - 0.3).norm()
    assert float(relative) < 0.1
    settled = DiTGenerator.settled(generator.hparams, state)
    assert settled.generator_refine is False
    again = DiTGenerator.build(settled, E, P, 40)
    again.load_state_dict(state)
    assert torch.equal(again.generate(conditions), generator.generate(conditions))


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_a_dit_learns_what_recall_leaves(prediction: str) -> None:
    conditions, neurons = pairs(32)
    settings = {
        "generator_features": 12,
        "generator_steps": 400,
        "generator_tolerance": 0.0,
        "diffusion_prediction": prediction,
    }
    alone = build(32, generator_refine=False, **settings)
    assert alone.fit(conditions, neurons) == []
    refined = build(32, **settings)
    losses = refined.fit(conditions, neurons)
    assert len(losses) == 400 and sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert alone.error(conditions, neurons) > 0.6
    assert refined.error(conditions, neurons) < 0.6 * alone.error(conditions, neurons)
    assert DiTGenerator.settled(refined.hparams, refined.state_dict()).generator_refine is True


def test_a_dit_which_learns_nothing_is_given_up() -> None:
    conditions, neurons = pairs(64)
    settings = {"generator_features": 20, "generator_epochs": 500}
    hopeless = build(64, generator_lr=1.0, **settings)  # such steps only spoil it
    losses = hopeless.fit(conditions, neurons)
    assert len(losses) == 25 and hopeless.network is None
    alone = build(64, generator_refine=False, **settings)
    alone.fit(conditions, neurons)
    assert torch.equal(hopeless.generate(conditions), alone.generate(conditions))
    kept = build(64, generator_lr=1.0, generator_refine=True, generator_features=20)
    kept.fit(conditions, neurons)
    assert kept.network is not None


@pytest.mark.parametrize("kind", [DiTGenerator, MLPGenerator])
def test_generated_neurons_are_of_full_length(kind: type[DiTGenerator | MLPGenerator]) -> None:
    conditions, neurons = pairs(600)
    centered = neurons - neurons.mean(0)

    def slope(scaling: str) -> tuple[float, float]:
        settings = {"generator_features": 250, "generator_refine": False}
        own = {"generator_scaling": scaling, "generator_scale": 0.1, "generator_epochs": 40}
        hparams = MeGHyperParams.from_dict({**SMALL, **settings, **own})
        generator = cast(Any, kind.build(hparams, E, P, 600))
        generator.fit(conditions, neurons)
        made = generator.generate(conditions)
        made = made - made.mean(0)
        return float((made * centered).sum() / centered.square().sum()), float(generator.stretch)

    stretched, by = slope("whiten")
    assert stretched == pytest.approx(1.0, abs=0.05)
    assert by > 1.2
    assert slope("constant")[1] == 1.0  # the paper's neurons stay as they are


def test_too_few_features_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build(400, generator_features=40, generator_refine=False).fit(*pairs(400))
    assert "400 edits need more generator_features" in caplog.text


def test_recall_needs_anchors_and_something_must_generate() -> None:
    with pytest.raises(HParamsError, match="recall.*generator_anchored: true.*patches"):
        MeGHyperParams(generator_conditioning="recall", generator_anchored=False)
    with pytest.raises(HParamsError, match="generator_refine: false.*patches; expected recall"):
        MeGHyperParams(generator_conditioning="patches", generator_refine=False)
    assert MeGHyperParams().conditioning == "recall"
    assert MeGHyperParams(generator_anchored=False).conditioning == "patches"
    assert MeGHyperParams(generator_zero_augmentation=0.1).conditioning == "patches"
    assert MeGHyperParams(generator_conditioning="time").conditioning == "time"
