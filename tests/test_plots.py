"""Pictures: our method in front, labels that do not overlap, one style for all."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from meg_editor.benchmark import read_cells
from meg_editor.benchmark.cell import Cell, ThresholdSweep
from meg_editor.benchmark.style import OURS, is_ours, spread, styles

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from meg_editor.benchmark import plots, style

RESULTS = Path(__file__).parents[1] / "examples" / "results"
REPORTS = sorted(RESULTS.glob("*/*/report.json"))


def drawn(plot: Any, cells: list[Cell]) -> Any:
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    plot(axes, cells)
    figure.draw_without_rendering()
    return axes


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: "-".join(path.parts[-3:-1]))
@pytest.mark.parametrize("plot", [plots.score_lines, plots._trade_off])
def test_every_method_is_labelled_and_no_two_labels_overlap(path: Path, plot: Any) -> None:
    cells = read_cells(path)
    axes = drawn(plot, cells)
    texts = {text.get_text(): text for text in axes.texts}
    assert {text.split()[0] for text in texts} == {cell.method for cell in cells}
    assert axes.get_legend() is None
    boxes = {name: style._extent(text) for name, text in texts.items()}
    for (one, box), (other, second) in itertools.combinations(boxes.items(), 2):
        across = min(box.x1, second.x1) - max(box.x0, second.x0)
        along = min(box.y1, second.y1) - max(box.y0, second.y0)
        assert min(across, along) < 3, f"{one!r} overlaps {other!r} by {across:.0f} x {along:.0f}"


def test_our_method_is_in_front_thick_and_of_a_colour_of_its_own() -> None:
    looks = styles(["scen", "meg", "meg-bank", "ft", "unedited"])
    others = [look for method, look in looks.items() if not is_ours(method)]
    assert looks["meg"]["color"] == OURS not in {look["color"] for look in others}
    assert all(looks["meg"]["zorder"] > look["zorder"] for look in others)
    assert all(looks["meg"]["linewidth"] > 2 * look["linewidth"] for look in others)


def test_labels_are_shifted_as_little_as_possible() -> None:
    assert spread([10.0, 10.0, 10.0], 4.0, 0.0, 100.0) == [6.0, 10.0, 14.0]
    assert spread([0.0, 0.0, 99.0, 100.0], 4.0, 0.0, 100.0) == [0.0, 4.0, 96.0, 100.0]
    assert spread([], 4.0, 0.0, 100.0) == []
    assert spread([5.0], 4.0, 0.0, 100.0) == [5.0]


def test_pictures_are_written(tmp_path: Path) -> None:
    cells = read_cells(RESULTS / "reference/world/report.json")[:20]
    files = plots.plot_benchmark(cells, tmp_path)
    names = [path.name for path in files]
    assert names[:2] == ["score-over-edits.png", "generality-locality.png"]
    sweep = ThresholdSweep(0.4, 90.0, 0.0, [0.1, 0.5], [99.0, 90.0], [80.0, 99.0])
    swept = [dataclasses.replace(cell, calibration=sweep) for cell in cells if cell.gate_scores]
    files += plots.plot_benchmark(swept, tmp_path)
    assert "calibration-meg.png" in {path.name for path in files}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
