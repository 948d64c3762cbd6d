"""report.json, report.md and pictures of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from meg_editor.benchmark.cell import Cell, without_nan
from meg_editor.benchmark.plots import plot_benchmark
from meg_editor.benchmark.search import Trial
from meg_editor.benchmark.tables import markdown
from meg_editor.evaluation.report import versions
from meg_editor.runtime.text_files import write_json, write_text


def write_report(
    cells: Sequence[Cell],
    out: Path,
    searches: Mapping[str, Sequence[Trial]] | None = None,
    plots: bool = False,
) -> None:
    """Write `cells` to `out`: report.json and report.md, with `plots` PNG files, all or nothing.

    Args:
        searches: trials among which the settings of each baseline were chosen.
    """
    content = {
        "versions": versions(),
        "cells": [cell.to_dict() for cell in cells],
        "searches": without_nan(searches or {}),
    }
    write_json(out / "report.json", content)
    write_text(out / "report.md", markdown(cells))
    if plots:
        plot_benchmark(cells, out)
