"""The picture of the demo: Reliability, Generality, Locality and Score of each method."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

METRICS = ("Reliability", "Generality", "Locality", "Score")
_COLORS = {"unedited": "#b4b9c0", "meg-default": "#1f77b4", "meg-paper": "#e0913c"}


def draw_scores(report: Mapping[str, Any], path: Path) -> bool:
    """Draw report.json as grouped bars (free generation, %) into a PNG file.

    Returns:
        Whether it was drawn: matplotlib is optional.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    methods: Mapping[str, Mapping[str, Any]] = report["methods"]
    figure = Figure(figsize=(6.4, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for column, (name, entry) in enumerate(methods.items()):
        heights = [entry[metric.lower()]["ag"] for metric in METRICS[:3]] + [entry["score"]]
        middles = [place + (column - (len(methods) - 1) / 2) * width for place in range(4)]
        bars = axes.bar(middles, heights, 0.92 * width, label=name, color=_COLORS.get(name))
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(4), METRICS)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("%")
    axes.set_title(f"{report['edits']} edits of the reference model", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path)
    return True
