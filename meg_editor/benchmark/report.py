"""report.json, report.md and pictures of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meg_editor.benchmark.plots import draw
from meg_editor.benchmark.runner import without_nan
from meg_editor.benchmark.search import Trial
from meg_editor.benchmark.tables import markdown
from meg_editor.evaluation.report import versions
from meg_editor.runtime.text_files import write_json, write_text


def write_report(
    cells: Sequence[dict[str, Any]],
    out: Path,
    searches: Mapping[str, Sequence[Trial]] | None = None,
    plots: bool = False,
) -> None:
    """Write `cells` to `out`: report.json and report.md, with `plots` PNG files, all or nothing.

    Args:
        searches: how the settings of each baseline were chosen.
    """
    found = {name: [asdict(t) for t in trials] for name, trials in (searches or {}).items()}
    content = {"versions": versions(), "cells": list(cells), "searches": without_nan(found)}
    write_json(out / "report.json", content)
    write_text(out / "report.md", markdown(cells))
    if plots:
        draw(cells, out)
