"""Pictures of a benchmark: score over edits (figure 3), generality against locality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Cell = dict[str, Any]


def draw(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write PNG files to `folder` and name them.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'meg-editor[plots]', or leave --plots out"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_save(_trade_off, cells, folder / "generality-locality.png")]
    if len({cell["edits"] for cell in cells}) > 1:
        drawn.insert(0, _save(_score_over_edits, cells, folder / "score-over-edits.png"))
    return drawn


def _save(plot: Callable[[Any, Sequence[Cell]], None], cells: Sequence[Cell], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    plot(axes, cells)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


def _methods(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell["method"] for cell in cells))


def _score_over_edits(axes: Any, cells: Sequence[Cell]) -> None:
    for method in _methods(cells):
        own = [cell for cell in cells if cell["method"] == method]
        counts = sorted({cell["edits"] for cell in own})
        scores = [[cell["score"] for cell in own if cell["edits"] == n] for n in counts]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in scores]
        means = [fmean(values) for values in scores]
        axes.errorbar(counts, means, yerr=spread, marker="o", capsize=3, label=method)
    counts = sorted({cell["edits"] for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(0, 102)
    axes.set_xlabel("edits")
    axes.set_ylabel("Score (%)")
    axes.set_title(f"Score over the number of edits, {cells[0]['data']}")
    axes.legend(frameon=False)


def _trade_off(axes: Any, cells: Sequence[Cell]) -> None:
    for method in _methods(cells):
        own = [cell for cell in cells if cell["method"] == method]
        axes.scatter(
            [cell["locality"]["ag"] for cell in own],
            [cell["generality"]["ag"] for cell in own],
            s=[18 + 6 * cell["edits"] ** 0.3 for cell in own],
            label=method,
            alpha=0.8,
        )
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("Locality AG (%)")
    axes.set_ylabel("Generality AG (%)")
    axes.set_title(f"Generality against Locality, {cells[0]['data']} (size: edits)")
    axes.legend(frameon=False)
