"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from meg_editor.evaluation.metrics import (
    Pair,
    Scores,
    exact,
    harmonic_mean,
    normalise,
    percent,
    token_accuracy,
)


def test_exact_ignores_blanks_and_a_final_full_stop_only() -> None:
    answers = [" Paris. ", "paris", "Paris, France", "New  York", "St."]
    wanted = ["Paris", "Paris", "Paris", "New York", "St"]
    assert exact(answers, wanted) == [1.0, 0.0, 0.0, 1.0, 1.0]
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
