"""report.json, report.md and pictures of a benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meg_editor.benchmark.plots import draw
from meg_editor.benchmark.tables import markdown
from meg_editor.evaluation.report import versions
from meg_editor.text_files import write_text


def write_report(cells: Sequence[dict[str, Any]], out: Path, plots: bool = False) -> None:
    """Write `cells` to `out`: report.json and report.md, with `plots` PNG files, all or nothing."""
    files = {
        "report.json": json.dumps({"versions": versions(), "cells": list(cells)}, indent=1) + "\n",
        "report.md": markdown(cells),
    }
    for name, text in files.items():
        write_text(out / name, text)
    if plots:
        draw(cells, out)
