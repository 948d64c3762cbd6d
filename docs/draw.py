"""Draw the README's picture: the demo's scores, and scores as the edits grow.

    meg-editor demo && cp meg-demo/report.json examples/results/reference/demo/demo.json
    python docs/draw.py                                             # draws docs/scores.png anew

The right half is of examples/results/reference/world/report.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from meg_editor.benchmark import read_cells
from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.plots import score_bars, score_lines
from meg_editor.benchmark.style import clean

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "examples" / "results" / "reference"
NAMES = {
    "meg": "MeG",
    "scen": "SCEN",
    "neuraldb": "NeuralDB",
    "ft": "FT",
    "rledit": "RLEdit",
    "malmen": "MALMEN",
    "memit": "MEMIT",
    "alphaedit": "AlphaEdit",
}


def draw(demo: dict[str, Any], cells: list[Cell], path: Path) -> None:
    """Two panels in one PNG file."""
    figure = Figure(figsize=(9.2, 3.3), dpi=110, layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for axes in (bars, lines):
        clean(axes)
        axes.tick_params(labelsize=8)
    bars.set_title(f"{demo['edits']} edits: meg-editor demo", fontsize=10)
    score_bars(bars, demo)
    lines.set_xlabel("edits at once", fontsize=9)
    lines.set_title("Score as the edits grow (%)", fontsize=10)
    score_lines(lines, cells, NAMES)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DOCS / "scores.png")
    options = parser.parse_args()
    demo = json.loads((RESULTS / "demo" / "demo.json").read_text("utf-8"))
    draw(demo, read_cells(RESULTS / "world" / "report.json"), options.out)


if __name__ == "__main__":
    main()
