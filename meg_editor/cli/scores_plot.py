"""The picture of the demo: Reliability, Generality, Locality and Score of each method."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def draw_scores(report: Mapping[str, Any], path: Path) -> bool:
    """Draw report.json as grouped bars (free generation, %) into a PNG file.

    Returns:
        Whether it was drawn: matplotlib is optional.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    from meg_editor.benchmark.plots import score_bars
    from meg_editor.benchmark.style import clean

    figure = Figure(figsize=(6.4, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    clean(axes)
    score_bars(axes, report)
    axes.set_title(f"{report['edits']} edits of the reference model", fontsize=10)
    figure.savefig(path)
    return True
