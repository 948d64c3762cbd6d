"""report.json, report.md and pictures of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meg_editor.benchmark.plots import draw
from meg_editor.benchmark.tables import markdown
from meg_editor.evaluation.report import versions
from meg_editor.text_files import write_json, write_text


def write_report(cells: Sequence[dict[str, Any]], out: Path, plots: bool = False) -> None:
    """Write `cells` to `out`: report.json and report.md, with `plots` PNG files, all or nothing."""
    write_json(out / "report.json", {"versions": versions(), "cells": list(cells)})
    write_text(out / "report.md", markdown(cells))
    if plots:
        draw(cells, out)
