"""Pictures of a benchmark: score over edits (figure 3), generality against locality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.tables import scores_over_edits
from meg_editor.collection.layer_sweep import LayerResult

Cells = Mapping[tuple[str, int], Cell]  # (name of a row, edits) -> cell


def plot_benchmark(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Paths of the PNG files which it writes to `folder`.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    files = [_save(_trade_off, cells, folder / "generality-locality.png")]
    if len({cell.edits for cell in cells}) > 1:
        files.insert(0, _save(_score_over_edits, cells, folder / "score-over-edits.png"))
    for cell in _routed(cells):
        name = cell.method.replace(" ", "-").replace("/", "-")
        files.append(_save(_histograms, [cell], folder / f"gate-scores-{name}.png"))
        if cell.calibration:
            files.append(_save(_calibration, [cell], folder / f"calibration-{name}.png"))
    return files


def _routed(cells: Sequence[Cell]) -> list[Cell]:
    """Of each method with a gate the first seed at the most edits."""
    most = max(cell.edits for cell in cells)
    chosen: dict[str, Cell] = {}
    for cell in cells:
        if cell.edits == most and cell.gate_scores:
            chosen.setdefault(cell.method, cell)
    return list(chosen.values())


def plot_score_histogram(cell: Cell, path: Path) -> None:
    """Histograms of the gate's scores over edits, paraphrases and other queries (A.5)."""
    _save(_histograms, [cell], path)


def plot_thresholds(cells: Cells, gate: str, path: Path) -> None:
    """Table 16 as a picture; cells of (threshold, edits)."""
    _save(lambda axes, _: _thresholds(axes, cells, gate), [], path)


def plot_layers(results: Sequence[LayerResult], path: Path) -> None:
    """Figures 5 to 7."""
    _save(lambda axes, _: _layers(axes, results), [], path)


def check_matplotlib() -> None:
    """Raises ValueError, with what to do, where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "plots need matplotlib: pip install 'meg-editor[plots]', or leave --plots out"
        ) from error


def _save(plot: Callable[[Any, Sequence[Cell]], None], cells: Sequence[Cell], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    plot(axes, cells)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


def _styles(cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """Method -> its colour and marker, of which no two are alike; the best method first."""
    return {
        method: {"color": f"C{place % 10}", "marker": "os^Dv"[place // 10 % 5]}
        for place, method in enumerate(scores_over_edits(cells))
    }


def _legend(axes: Any) -> None:
    """Inside the axes where there is room, beside them for many methods."""
    many = len(axes.get_legend_handles_labels()[1]) > 6
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {}
    axes.legend(frameon=False, **beside)


def _score_over_edits(axes: Any, cells: Sequence[Cell]) -> None:
    styles = _styles(cells)
    for method, scores in scores_over_edits(cells).items():
        means = [fmean(values) for values in scores.values()]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in scores.values()]
        axes.plot([*scores], means, label=f"{method} {means[-1]:.1f}", **styles[method])
        if any(spread):
            color = styles[method]["color"]
            axes.errorbar([*scores], means, yerr=spread, fmt="none", capsize=3, color=color)
    counts = sorted({cell.edits for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(0, 102)
    axes.set_xlabel("edits")
    axes.set_ylabel("Score (%)")
    axes.set_title(f"Score over the number of edits, {cells[0].data}")
    _legend(axes)


def _trade_off(axes: Any, cells: Sequence[Cell]) -> None:
    for method, style in _styles(cells).items():
        group = [cell for cell in cells if cell.method == method]
        axes.scatter(
            [cell.locality.ag for cell in group],
            [cell.generality.ag for cell in group],
            s=[18 + 6 * cell.edits**0.3 for cell in group],
            label=method,
            alpha=0.8,
            **style,
        )
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("Locality AG (%)")
    axes.set_ylabel("Generality AG (%)")
    axes.set_title(f"Generality against Locality, {cells[0].data} (size: edits)")
    _legend(axes)


_GROUPS = {"reliability": "edited prompts", "generality": "paraphrases", "locality": "others"}


def _sign(scores: Sequence[float]) -> int:
    """-1 for a Familiarity Network, whose score is minus the entropy which the paper shows."""
    return -1 if max(scores) <= 0 else 1


def _histograms(axes: Any, cells: Sequence[Cell]) -> None:
    (cell,) = cells
    if (scores := cell.gate_scores) is None:
        raise ValueError(f"{cell.method}: expected a method with a gate, got no gate scores")
    sign = _sign(scores.edges)
    edges = [sign * edge for edge in scores.edges]
    for name, label in _GROUPS.items():
        counts: list[int] = getattr(scores, name)
        total = max(sum(counts), 1)
        axes.stairs(
            [100 * count / total for count in counts][::sign],
            edges[::sign],
            fill=True,
            alpha=0.45,
            label=f"{label} ({sum(counts):,})",
        )
    axes.axvline(sign * scores.threshold, color="black", linestyle="--", linewidth=1)
    place = (sign * scores.threshold, 0.97)
    axes.annotate(" threshold", place, xycoords=("data", "axes fraction"), va="top")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.set_xlabel("entropy (nats)" if sign < 0 else "similarity to the nearest edit")
    axes.set_ylabel("queries (%)")
    axes.set_title(f"Gate scores, {cell.edits:,} edits, {cell.data}, {cell.method}")
    axes.legend(frameon=False)


def _thresholds(axes: Any, cells: Cells, gate: str) -> None:
    values = [float(name) for name, _ in cells]
    for metric in ("reliability", "generality", "locality"):
        for setting, style in (("ag", "o-"), ("tf", "s:")):
            axes.plot(
                values,
                [getattr(cell.metric(metric), setting) for cell in cells.values()],
                style,
                color={"reliability": "C0", "generality": "C1", "locality": "C2"}[metric],
                label=f"{metric.capitalize()} {setting.upper()}",
            )
    axes.set_xlabel("entropy threshold ε" if gate == "familiarity" else "similarity threshold")
    axes.set_ylabel("percent")
    axes.set_title("Metrics over the gate's threshold")
    axes.legend(frameon=False, fontsize="small")


def _calibration(axes: Any, cells: Sequence[Cell]) -> None:
    """Table 16 on the facts set aside for it, where the threshold is chosen."""
    (cell,) = cells
    if (sweep := cell.calibration) is None:
        raise ValueError(f"{cell.method}: expected a calibrated gate, got no calibration")
    sign = _sign(sweep.thresholds)
    thresholds = [sign * value for value in sweep.thresholds]
    for metric, color in (("generality", "C1"), ("locality", "C2")):
        axes.plot(thresholds, getattr(sweep, metric), color=color, label=metric.capitalize())
    axes.axvline(sign * sweep.threshold, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("entropy threshold ε" if sign < 0 else "similarity threshold")
    axes.set_ylabel("answers as they should be (%)")
    axes.set_title(f"Choosing the threshold, {cell.data}, {cell.method}")
    axes.legend(frameon=False)


def _layers(axes: Any, results: Sequence[LayerResult]) -> None:
    layers = [result.layer for result in results]
    axes.plot(layers, [result.reliability for result in results], "o-", label="Reliability AG")
    if all(result.generality is not None for result in results):
        axes.plot(layers, [result.generality for result in results], "s-", label="Generality AG")
    axes.set_xticks(layers)
    axes.set_xlabel("layer of the neuron")
    axes.set_ylabel("percent")
    axes.set_title("The right stored neuron in each layer")
    axes.legend(frameon=False)
