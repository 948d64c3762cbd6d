"""Progress: lines with a time left where nobody sees a bar, and none for short loops."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from tqdm import tqdm

from meg_editor.runtime.progress import ProgressLines, duration, progress_bar, progress_stage


class Clock:
    """Seconds which pass only when a test advances them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines_of(clock: Clock, items: Any, seconds: float, unit: str = "fact") -> list[str]:
    """The lines of a loop in which each item takes so many seconds."""
    lines: list[str] = []
    bar = ProgressLines(items, "collection", unit, write=lines.append, clock=clock, every=5)
    seen = []
    for item in bar:
        seen.append(item)
        clock.now += seconds
    assert seen == list(range(8))
    return lines


def test_a_line_says_stage_done_total_and_time_left(clock: Clock) -> None:
    assert lines_of(clock, range(8), 2.5) == [
        "collection: 2/8 facts, 15 s left",
        "collection: 4/8 facts, 10 s left",
        "collection: 6/8 facts, 5 s left",
    ]


def test_a_short_loop_prints_nothing(clock: Clock) -> None:
    assert lines_of(clock, range(8), 0.6) == []


def test_without_a_length_there_is_no_time_left(clock: Clock) -> None:
    for unit, units in (("batch", "batches"), ("epoch", "epochs")):
        lines = lines_of(clock, iter(range(8)), 3, unit)
        assert lines[0] == f"collection: 2 {units} in 6 s"


def test_updates_by_hand_count_as_many_as_they_say(clock: Clock) -> None:
    lines: list[str] = []
    bar = ProgressLines(range(1024), "collection", "fact", write=lines.append, clock=clock)
    with bar as same:
        assert same is bar
        clock.now += 4
        bar.update(100)
        clock.now += 4
        bar.update(28)
        bar.update(1)
    assert lines == ["collection: 128/1024 facts, 56 s left"]


def test_short_loops_of_a_long_stage_are_heard_of(clock: Clock) -> None:
    lines: list[str] = []
    with progress_stage("calibration", clock):
        for _ in range(4):
            for _ in ProgressLines(range(4), "answers", "batch", write=lines.append, clock=clock):
                clock.now += 1  # four seconds each
    assert lines == [
        "calibration: answers 1/4 batches, 3 s left",  # after five seconds
        "calibration: answers 2/4 batches, 2 s left",
        "calibration: answers 3/4 batches, 1 s left",
    ]
    list(ProgressLines(range(4), "answers", write=lines.append, clock=clock))
    assert len(lines) == 3  # outside


def test_errors_pass_through(clock: Clock) -> None:
    with pytest.raises(KeyError), ProgressLines(range(3), "x", clock=clock):
        raise KeyError


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_terminal_gets_a_bar_and_anything_else_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar: Any = progress_bar(range(3), "encoder")
    assert isinstance(bar, tqdm) and list(bar) == [0, 1, 2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(progress_bar(range(3), "encoder"), ProgressLines)


def test_of_several_processes_the_first_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, count in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        bar: Any = progress_bar(range(2), "encoder")
        bar._every = 0
        list(bar)
        assert capsys.readouterr().err.count("encoder: 1/2 steps") == count
