"""Rebuild every table and picture of results from the reports in examples/results.

    python docs/build_results.py            # rewrites tables, report.md and pictures
    python docs/build_results.py --check    # names the tables that differ, and writes nothing

A table of README.md, docs/*.md or examples/results/README.md stands between two comments, the first
of which says what it is a table of (`result_tables`):

    <!-- table: RUN[@EDITS,EDITS…] [RUN…] VIEW -->
    <!-- end -->
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from result_tables import RESULTS, built

from meg_editor.benchmark import Cell, read_cells
from meg_editor.benchmark.plots import (
    plot_benchmark,
    plot_layers,
    plot_score_histogram,
    plot_thresholds,
)
from meg_editor.benchmark.report import report_text
from meg_editor.collection.layer_sweep import LayerResult

ROOT = RESULTS.parents[1]
MARKED = re.compile(r"(<!-- table: ([^>]+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The files that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RESULTS / "README.md"]


def filled(page: str) -> str:
    """A page with all its tables as they are built."""
    return MARKED.sub(lambda m: f"{m[1]}{built(m[2])}\n{m[4]}", page)


def rebuilt() -> dict[Path, str]:
    """Every file with a table -> its text as it should be."""
    texts = {page: filled(page.read_text("utf-8")) for page in pages()}
    reports = sorted(RESULTS.glob("*/*/report.json"))
    return texts | {path.with_suffix(".md"): report_text(read_cells(path)) for path in reports}


def draw_all() -> None:
    """Every picture of results."""
    for path in sorted(RESULTS.glob("*/*/report.json")):
        plot_benchmark(read_cells(path), path.parent)
    for path in sorted(RESULTS.glob("*/*/tables.json")):
        draw_tables(json.loads(path.read_text("utf-8"))["tables"], path.parent)


def draw_tables(sections: dict[str, Any], folder: Path) -> None:
    """Table 16 and the figures of `meg-editor tables`."""

    def cells(number: int) -> dict[tuple[str, int], Cell]:
        title = next((title for title in sections if title.startswith(f"Table {number}:")), None)
        if title is None:  # --only
            return {}
        named = {name.rsplit(", ", 1)[0]: Cell.from_dict(c) for name, c in sections[title].items()}
        return {(name, cell.edits): cell for name, cell in named.items()}

    if thresholds := cells(16):
        plot_thresholds(thresholds, folder / "thresholds.png")
    for (name, _), cell in cells(5).items():
        if name == "with gate":
            plot_score_histogram(cell, folder / "gate-scores.png")
    times = {"steps": math.nan, "milliseconds": math.nan}  # which older files lack
    for title, layers in sections.items():
        if title.startswith("Figures"):
            results = [LayerResult(**{**times, **layer}) for layer in layers]
            plot_layers(results, folder / "layers.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1: one differs")
    options = parser.parse_args()
    texts = rebuilt()
    differing = [p for p, text in texts.items() if not p.exists() or p.read_text("utf-8") != text]
    if options.check:
        sys.exit("\n".join(f"{path}: python docs/build_results.py" for path in differing) or 0)
    for path in differing:
        path.write_text(texts[path], "utf-8")
    draw_all()


if __name__ == "__main__":
    main()
