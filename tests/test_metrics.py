"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from meg_editor.evaluation.metrics import (
    Pair,
    Scores,
    exact,
    harmonic_mean,
    intervals,
    matches,
    normalise,
    percent,
    token_accuracy,
    worst_case,
)


def test_exact_ignores_blanks_and_a_final_full_stop_only() -> None:
    answers = [" Paris. ", "paris", "Paris, France", "New  York", "St."]
    targets = ["Paris", "Paris", "Paris", "New York", "St"]
    assert exact(answers, targets) == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert normalise("U.S.") == "U.S"


def test_token_accuracy_is_the_share_of_equal_tokens() -> None:
    assert token_accuracy([[1, 2, 3], [7]], [[1, 9, 3], [7]]) == pytest.approx([2 / 3, 1.0])
    with pytest.raises(ValueError):
        token_accuracy([[1, 2]], [[1]])


def test_score_is_the_harmonic_mean_of_the_six() -> None:
    """The paper's table 9, Phi-2: MeG and FT."""
    meg = Scores(Pair(99.61, 99.49), Pair(80.37, 87.24), Pair(88.67, 95.75))
    tuned = Scores(Pair(99.51, 99.61), Pair(83.49, 91.04), Pair(10.15, 53.13))
    assert meg.score == pytest.approx(91.30, abs=0.01)
    assert tuned.score == pytest.approx(37.41, abs=0.01)
    assert harmonic_mean([50, 0]) == 0


def test_percent() -> None:
    assert percent([1.0, 0.0, 1.0, 1.0]) == 75
    assert math.isnan(percent([]))


def test_an_alias_counts_as_right() -> None:
    assert matches(" Norge.", ("Norway", "Norge")) == 1.0
    assert matches("Norge", ("Norway",)) == matches("", ()) == 0.0


def test_worst_case_wants_every_paraphrase_of_a_fact() -> None:
    pairs = [(0, 1.0), (0, 0.0), (1, 1.0), (1, 1.0), (2, 0.5), (2, 0.25)]
    assert worst_case(pairs) == pytest.approx(100 * (0 + 1 + 0.25) / 3)
    assert math.isnan(worst_case([]))


def test_intervals_agree_with_the_normal_approximation() -> None:
    """400 independent facts, 80 % right: 80 ± 1.96 · 100 · sqrt(0.8 · 0.2 / 400) = 80 ± 3.92."""
    pairs = [(fact, float(fact % 5 > 0)) for fact in range(400)]
    low, high = intervals({"m": pairs}, resamples=4000)["m"]
    assert (low, high) == pytest.approx((76.08, 83.92), abs=0.5)


def test_intervals_draw_facts_not_questions() -> None:
    """Ten equal answers per fact tell no more than one."""
    once = [(fact, float(fact % 5 > 0)) for fact in range(100)]
    often = [pair for pair in once for _ in range(10)]
    assert intervals({"m": often}) == intervals({"m": once})
    assert intervals({"m": once}, seed=1) != intervals({"m": once})


def test_the_interval_of_the_score_is_that_of_the_harmonic_mean() -> None:
    """Where one metric is sure and the other not, worked out by drawing facts one by one."""
    rng = np.random.default_rng(3)
    values = rng.random(60)
    result = intervals(
        {"sure": [(n, 1.0) for n in range(60)], "m": [(n, float(v)) for n, v in enumerate(values)]}
    )
    means = np.array([values[rng.integers(60, size=60)].mean() for _ in range(4000)])
    expected = np.quantile(100 * 2 / (1 + 1 / means), (0.025, 0.975))
    assert result["sure"] == (100.0, 100.0)
    assert result["score"] == pytest.approx(tuple(expected), abs=0.6)


def test_a_resample_without_a_question_has_no_value() -> None:
    """It counted as 0 %: two of 64 facts, both right, had an interval from 0 to 100."""
    everywhere = [(fact, 1.0) for fact in range(64)]
    found = intervals({"reliability": everywhere, "locality": everywhere[:2]})
    assert found == dict.fromkeys(("reliability", "locality", "score"), (100.0, 100.0))
