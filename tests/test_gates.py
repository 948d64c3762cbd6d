"""Gates let edits in and nothing else, at a threshold which calibration finds."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.routing.gates import (
    GATES,
    Calibration,
    FamiliarityGate,
    GateOutcomes,
    SimilarityGate,
    calibrate,
)

E, N = 32, 40

every_gate = pytest.mark.parametrize("kind", GATES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def near(vectors: Tensor, noise: float = 0.01, seed: int = 9) -> Tensor:
    return F.normalize(vectors + noise * unit(*vectors.shape, seed=seed), dim=-1)


def build(kind: str, **settings: Any) -> Any:
    values = {"gate": kind, "familiarity_epochs": 300, **settings}
    return GATES[kind].build(MeGHyperParams.from_dict(values), E)


def score(gate: Any, queries: Tensor, edited: Tensor) -> Tensor:
    result: Tensor = gate.score(queries, (queries @ edited.T).amax(1))
    return result


def sweep(yes: Tensor, no: Tensor, **settings: Any) -> Calibration:
    """Calibrate where answers are right exactly if the routing is."""
    right, wrong = (lambda x: torch.ones(len(x)).bool()), (lambda x: torch.zeros(len(x)).bool())
    return calibrate(
        GateOutcomes(yes, right(yes), wrong(yes)),
        GateOutcomes(no, wrong(no), right(no)),
        **settings,
    )


@pytest.fixture(scope="module")
def familiarity() -> Any:
    torch.manual_seed(0)
    gate = build("familiarity")
    gate.fit(unit(N, E), seed=1)
    return gate


# ---------------------------------------------------------------------------- every gate


@every_gate
def test_the_calibrated_threshold_lies_between_edits_and_others(
    kind: str, familiarity: FamiliarityGate
) -> None:
    edited = unit(N, E)
    gate = familiarity if kind == "familiarity" else build(kind)
    yes, no = score(gate, near(edited), edited), score(gate, unit(200, E, seed=5), edited)
    result = sweep(yes, no)
    # Some strangers look familiar to an entropy; to a cosine in 32 dimensions none does.
    if kind != "familiarity":
        assert float(no.max()) < result.threshold < float(yes.min())
        assert result.balance == 1.0
    share = ((yes >= result.threshold).float().mean() + (no < result.threshold).float().mean()) / 2
    assert float(share) > 0.9
    assert result.balance == pytest.approx(float(share), abs=0.01)


@every_gate
def test_thresholds_which_are_given_are_kept(kind: str) -> None:
    given = build(kind, gate_threshold=0.3).threshold
    assert float(given) == pytest.approx(-0.3 if kind == "familiarity" else 0.3)  # H ≤ ε


@every_gate
def test_the_state_dict_holds_the_whole_gate(kind: str) -> None:
    edited, queries = unit(N, E), unit(5, E, seed=3)
    gate = build(kind, familiarity_epochs=5)
    gate.fit(edited, seed=1)
    gate.threshold.fill_(0.123)
    torch.manual_seed(77)
    restored = build(kind)
    restored.load_state_dict(gate.state_dict())
    assert float(restored.threshold) == pytest.approx(0.123)
    assert torch.equal(score(restored, queries, edited), score(gate, queries, edited))


@every_gate
def test_a_row_does_not_depend_on_its_batch(kind: str, familiarity: FamiliarityGate) -> None:
    edited, queries = unit(N, E), unit(6, E, seed=3)
    gate = familiarity if kind == "familiarity" else build(kind)
    alone = torch.cat([score(gate, row[None], edited) for row in queries])
    torch.testing.assert_close(alone, score(gate, queries, edited), rtol=1e-4, atol=1e-5)


def test_the_similarity_score_is_the_cosine() -> None:
    cosine = torch.tensor([0.5, -0.25])
    assert torch.equal(SimilarityGate().score(unit(2, E), cosine), cosine)


# ------------------------------------------------------------------- familiarity network


def test_the_score_is_minus_the_entropy() -> None:
    torch.manual_seed(3)
    gate, queries = FamiliarityGate(E, classes=7, blocks=2), 3 * unit(5, E)
    hidden = queries * math.sqrt(E)
    for block in gate.blocks:
        widen, _, _, narrow = block
        wide = hidden @ widen.weight.T + widen.bias
        wide = 0.5 * wide * (1 + torch.erf(wide / math.sqrt(2)))
        hidden = hidden + wide @ narrow.weight.T + narrow.bias
    expected = []
    for row in (hidden @ gate.head.weight.T + gate.head.bias).tolist():
        total = sum(math.exp(value) for value in row)
        p = [math.exp(value) / total for value in row]
        expected.append(sum(q * math.log(q) for q in p))
    assert gate.score(queries, torch.zeros(5)).tolist() == pytest.approx(expected, abs=1e-4)


def test_certain_predictions_have_no_entropy_and_even_ones_have_ln_k() -> None:
    gate = FamiliarityGate(E, classes=4, blocks=1)
    with torch.no_grad():
        gate.head.weight.zero_()
        gate.head.bias.zero_()
    assert gate.score(unit(1, E), torch.zeros(1)).item() == pytest.approx(-math.log(4))
    with torch.no_grad():
        gate.head.bias[2] = 1e4
    assert gate.score(unit(1, E), torch.zeros(1)).item() == 0.0  # and not NaN from 0 · -inf


def test_what_was_seen_has_far_less_entropy(familiarity: FamiliarityGate) -> None:
    edited = unit(N, E)
    seen = -score(familiarity, edited, edited)
    unseen = -score(familiarity, unit(200, E, seed=5), edited)
    assert float(seen.max()) < 0.1  # the paper's ε for Phi-2
    assert float(unseen.mean()) > 10 * float(seen.mean())
    assert float(unseen.median()) > float(seen.max())


def test_labels_are_random_and_learned(familiarity: FamiliarityGate) -> None:
    labels = familiarity.logits(unit(N, E)).argmax(1)
    assert len(labels.unique()) > 5  # of K = 10, for 40 facts
    assert torch.equal(labels, torch.randint(10, (N,), generator=torch.Generator().manual_seed(1)))


def test_convergence_ends_the_training() -> None:
    """It trains until the loss is below 1e-3, far from the limit on epochs."""
    gate = build("familiarity", familiarity_epochs=100_000)
    edited = unit(N, E)
    gate.fit(edited, seed=1)
    labels = torch.randint(10, (N,), generator=torch.Generator().manual_seed(1))
    assert float(F.cross_entropy(gate.logits(edited), labels)) < 2e-3
    assert not gate.training and not any(p.requires_grad for p in gate.parameters())


def test_fitting_twice_with_one_seed_gives_the_same() -> None:
    edited, scores = unit(N, E), []
    for state in (1, 2):  # of the global generator, which others use too
        torch.manual_seed(state)
        gate = build("familiarity", familiarity_epochs=3)
        gate.fit(edited, seed=6)
        scores.append(score(gate, edited, edited))
    assert torch.equal(*scores)


def test_a_new_network_follows_from_the_seed_alone() -> None:
    """Calibration fits a second gate: it must be the same experiment."""
    heads = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        heads.append(build("familiarity", seed=seed).head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_building_and_fitting_leave_the_global_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    gate = build("familiarity", familiarity_epochs=3)
    gate.fit(unit(N, E))
    assert torch.equal(torch.randn(4), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_which_are_not_finite_stop_the_training(bad: float) -> None:
    edited = unit(N, E)
    edited[3, 4] = bad
    with pytest.raises(FloatingPointError, match="familiarity network.*epoch 0.*finite"):
        build("familiarity").fit(edited)


# ----------------------------------------------------------------------------- calibration


def test_the_sweep_counts() -> None:
    yes, no = torch.tensor([0.2, 0.6, 0.9, 1.0]), torch.tensor([0.0, 0.1, 0.3, 0.5])
    result = sweep(yes, no, steps=11)
    assert result.thresholds.tolist() == pytest.approx([i / 10 for i in range(11)])
    for t, accepted, rejected in zip(
        result.thresholds, result.generality, result.locality, strict=True
    ):
        assert float(accepted) == sum(value >= t for value in yes) / 4
        assert float(rejected) == sum(value < t for value in no) / 4
    assert 0.5 < result.threshold <= 0.6 + 1e-6
    assert result.balance == pytest.approx((3 / 4 + 4 / 4) / 2)


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ([0.3, 0.9], [0.1, 0.7]),
        ([0.3, 0.3, 0.9, 0.9], [0.1, 0.1, 0.7, 0.7]),
        ([-0.9, -0.3, -0.1], [-1.0, -0.5, -0.2]),
    ],
)
def test_two_equally_good_stretches_are_not_averaged(yes: list[float], no: list[float]) -> None:
    result = sweep(torch.tensor(yes), torch.tensor(no))
    at_threshold = (
        sum(value >= result.threshold for value in yes) / len(yes)
        + sum(value < result.threshold for value in no) / len(no)
    ) / 2
    assert at_threshold == pytest.approx(float((result.generality + result.locality).max()) / 2)
    assert result.balance == pytest.approx(at_threshold)


def test_scores_which_are_all_equal_give_a_threshold() -> None:
    result = sweep(torch.full((3,), 0.5), torch.full((4,), 0.5))
    assert result.threshold == pytest.approx(0.5) and result.balance == 0.5


def test_what_is_answered_right_anyway_does_not_count_against_a_threshold() -> None:
    """Half of the others fall among the paraphrases, but their answers stay the same."""
    yes = GateOutcomes(torch.linspace(0.5, 1, 100), torch.ones(100).bool(), torch.zeros(100).bool())
    scores = torch.linspace(0.0, 0.95, 100)
    harmless = GateOutcomes(scores, torch.ones(100).bool(), torch.ones(100).bool())
    result = calibrate(yes, harmless, tolerance=0.0)
    assert result.threshold <= 0.5 and result.balance == 1.0
    harmed = GateOutcomes(scores, scores < 0.7, torch.ones(100).bool())
    result = calibrate(yes, harmed, tolerance=0.0)
    # From 0.7 on every other query is harmed, every hundredth part as well as a paraphrase won.
    for t, generality, locality in zip(
        result.thresholds.tolist(),
        result.generality.tolist(),
        result.locality.tolist(),
        strict=True,
    ):
        assert generality == pytest.approx(float((yes.score >= t).float().mean()))
        lost = (scores >= t) & (scores >= 0.7)
        assert locality == pytest.approx(1 - float(lost.float().mean()))


def test_a_paraphrase_whose_neuron_fails_is_lost_at_every_threshold() -> None:
    scores = torch.linspace(0.5, 1, 10)
    works = torch.arange(10) % 2 == 0
    yes = GateOutcomes(scores, works, torch.zeros(10).bool())
    no = GateOutcomes(torch.zeros(4), torch.zeros(4).bool(), torch.ones(4).bool())
    result = calibrate(yes, no)
    assert float(result.generality.max()) == 0.5 and result.threshold <= 0.5


def test_of_equally_good_thresholds_the_lowest_is_taken() -> None:
    """Nine paraphrases far from the others and one near: paraphrases are more varied than these."""
    yes, no = torch.tensor([0.62] + [0.95] * 99), torch.tensor([0.6] * 100)
    assert 0.6 < sweep(yes, no, tolerance=0.0).threshold <= 0.62
    harsh = torch.cat([no, torch.tensor([0.7])])  # one in a hundred is worth the wider door
    assert sweep(yes, harsh, tolerance=0.01).threshold <= 0.62
    assert sweep(yes, harsh, tolerance=0.0).threshold <= 0.95


@pytest.mark.parametrize(("yes", "no"), [(0, 3), (3, 0), (0, 0)])
def test_calibration_needs_both_kinds(yes: int, no: int) -> None:
    with pytest.raises(ValueError, match=rf"got {yes} and {no}.*gate_threshold"):
        sweep(torch.rand(yes), torch.rand(no))


def test_tensors_and_back() -> None:
    result = sweep(torch.rand(20) + 0.5, torch.rand(30))
    tensors = result.to_tensors()
    assert all(isinstance(value, Tensor) for value in tensors.values())
    back = Calibration.from_tensors({**tensors, "gate.threshold": torch.tensor(1.0)})
    assert back is not None
    assert back.threshold == pytest.approx(result.threshold, rel=1e-6)
    for name in ("thresholds", "generality", "locality"):
        assert torch.equal(getattr(back, name), getattr(result, name))
    assert Calibration.from_tensors({"gate.threshold": torch.tensor(1.0)}) is None


@pytest.mark.parametrize("steps", [2, 11, 201])
def test_the_table_prints_rows_of_the_sweep(steps: int) -> None:
    result = sweep(torch.linspace(0.4, 1, 30), torch.linspace(0, 0.6, 40), steps=steps)
    header, *rows, chosen = result.table().splitlines()
    assert header.split() == ["threshold", "Generality", "Locality"]
    assert 2 <= len(rows) <= 12
    for row in rows:
        t, accepted, rejected = (float(number) for number in re.findall(r"[\d.]+", row))
        i = int((result.thresholds - t).abs().argmin())
        assert t == pytest.approx(float(result.thresholds[i]), abs=6e-4)
        assert accepted == pytest.approx(100 * float(result.generality[i]), abs=0.06)
        assert rejected == pytest.approx(100 * float(result.locality[i]), abs=0.06)
    assert chosen == f"chosen {result.threshold:.3f}"


@pytest.mark.parametrize("gap", [0.1, 0.5, 0.9])
def test_the_table_shows_the_choice_and_what_is_around_it(gap: float) -> None:
    """Near rows tell how much the exact value matters, far ones what trade-off there is."""
    edge = torch.rand(500) * 0.02 - 0.01 + gap
    result = sweep(torch.cat([edge, torch.ones(500)]), torch.cat([edge, torch.zeros(500)]))
    shown = [float(row.split()[0]) for row in result.table().splitlines()[1:-1]]
    assert shown == sorted(shown)
    assert f"{result.threshold:.3f}" in {f"{value:.3f}" for value in shown}
    assert sum(abs(value - result.threshold) < 0.05 for value in shown) >= 5
    assert max(abs(value - result.threshold) for value in shown) > 0.35


@pytest.mark.parametrize(
    ("yes", "no", "middle"),
    [
        ([0.3, 0.9], [0.2, 0.6], 0.75),  # from 0.2 to 0.3, and from 0.6 to 0.9
        ([0.6, 0.9], [0.2, 0.8], 0.40),  # from 0.2 to 0.6, and from 0.8 to 0.9
    ],
)
def test_the_longest_of_the_best_stretches_is_taken(
    yes: list[float], no: list[float], middle: float
) -> None:
    result = sweep(torch.tensor(yes), torch.tensor(no), steps=1001)
    assert result.threshold == pytest.approx(middle, abs=0.01)
    assert result.balance == 0.75


def test_a_familiarity_network_learns_from_half_precision() -> None:
    """An index of many edits has it."""
    gate = build("familiarity", familiarity_epochs=2)
    gate.fit(F.normalize(torch.randn(8, E), dim=-1).half())
    assert next(gate.parameters()).dtype == torch.float32
