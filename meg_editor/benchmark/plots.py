"""Pictures of a benchmark: score over edits (figure 3), generality against locality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from meg_editor.benchmark import style
from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.tables import scores_over_edits
from meg_editor.collection.layer_sweep import LayerResult
from meg_editor.evaluation.metrics import METRICS

Cells = Mapping[tuple[str, int], Cell]  # (name of a row, edits) -> cell
Data = TypeVar("Data")


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
    """Of each method with a gate the first seed at its most edits."""
    gated = sorted((cell for cell in cells if cell.gate_scores), key=lambda cell: -cell.edits)
    chosen: dict[str, Cell] = {}
    for cell in gated:
        chosen.setdefault(cell.method, cell)
    return list(chosen.values())


def plot_score_histogram(cell: Cell, path: Path) -> None:
    """Histograms of the gate's scores over edits, paraphrases and other queries (A.5)."""
    _save(_histograms, [cell], path)


def plot_thresholds(cells: Cells, path: Path) -> None:
    """Table 16 as a picture; cells of (threshold, edits)."""
    _save(_thresholds, cells, path)


def plot_layers(results: Sequence[LayerResult], path: Path) -> None:
    """Figures 5 to 7."""
    _save(_layers, results, path)


def check_matplotlib() -> None:
    """Raises ValueError, with what to do, where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "plots need matplotlib: pip install 'meg-editor[plots]', or leave --plots out"
        ) from error


def _save(plot: Callable[[Any, Data], None], data: Data, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    style.clean(axes)
    plot(axes, data)
    figure.savefig(path)
    return path


def score_lines(axes: Any, cells: Sequence[Cell], names: Mapping[str, str] | None = None) -> None:
    """The Score over the number of edits, a line per method, labelled where it ends.

    Args:
        names: method -> its label, of the methods to draw; None: all, by their names.
    """
    scores = scores_over_edits(cells)
    drawn = [method for method in scores if names is None or method in names]
    labels = []
    for method, look in style.styles(drawn).items():
        counts, values = [*scores[method]], [*scores[method].values()]
        means = [fmean(seeds) for seeds in values]
        deviation = [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values]
        axes.errorbar(counts, means, deviation, marker="o", capsize=2, clip_on=False, **look)
        text = f"{(names or {}).get(method, method)} {means[-1]:.1f}"
        ours = style.is_ours(method)
        labels.append(style.Label(text, counts[-1], means[-1], look["color"], ours))
    counts = sorted({cell.edits for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(0, 102)
    style.label_ends(axes, labels)


def score_bars(axes: Any, report: Mapping[str, Any]) -> None:
    """Reliability, Generality, Locality and Score (AG, %) of each method of a demo's report."""
    methods: Mapping[str, Mapping[str, Any]] = report["methods"]
    looks = style.styles([*methods])
    width = 0.8 / len(methods)
    for column, (name, entry) in enumerate(methods.items()):
        heights = [entry[metric]["ag"] for metric in METRICS] + [entry["score"]]
        middles = [place + (column - (len(methods) - 1) / 2) * width for place in range(4)]
        color = looks[name]["color"]
        bars = axes.bar(middles, heights, 0.92 * width, label=name, color=color)
        weight = "bold" if style.is_ours(name) else "normal"
        axes.bar_label(bars, fmt=_short, fontsize=7, padding=1, fontweight=weight)
    axes.set_xticks(range(4), [*map(str.capitalize, METRICS), "Score"])
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("%")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1)}
    axes.legend(frameon=False, ncols=3, fontsize=8, **below)


def _short(percent: float) -> str:
    """87.9, but 100 for 100.0: bars are narrow."""
    return f"{percent:.1f}".removesuffix(".0")


def _score_over_edits(axes: Any, cells: Sequence[Cell]) -> None:
    axes.set_xlabel("edits")
    axes.set_ylabel("Score (%)")
    axes.set_title(f"Score over the number of edits, {cells[0].data}")
    score_lines(axes, cells)


def _trade_off(axes: Any, cells: Sequence[Cell]) -> None:
    """A point per number of edits, the larger the more; a method's are joined by a line."""
    labels = []
    for method, look in style.styles([*scores_over_edits(cells)]).items():
        group = sorted((c for c in cells if c.method == method), key=lambda cell: cell.edits)
        x = [cell.locality.ag for cell in group]
        y = [cell.generality.ag for cell in group]
        sizes = [10 + 5 * cell.edits**0.3 for cell in group]
        color, order = look["color"], look["zorder"]
        axes.plot(x, y, color=color, linewidth=0.8, zorder=order, clip_on=False)
        axes.scatter(x, y, sizes, color=color, zorder=order, clip_on=False)
        labels.append(style.Label(method, x[-1], y[-1], color, style.is_ours(method)))
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("Locality AG (%)")
    axes.set_ylabel("Generality AG (%)")
    axes.set_title(f"Generality against Locality, {cells[0].data} (size: edits)")
    style.label_points(axes, labels, column_from=80)


_GROUPS = {"reliability": "edited prompts", "generality": "paraphrases", "locality": "others"}
_MEASURES = {
    "minus entropy": "entropy (nats)",
    "probability": "probability of the verifier",
    "similarity": "similarity to the nearest edit",
}
_LIMITS = {
    "minus entropy": "entropy threshold ε",
    "probability": "lowest probability of the verifier",
    "similarity": "similarity threshold",
}


def _limit(cell: Cell) -> str:
    """What the threshold of a cell's gate is."""
    measure = cell.gate_scores.measure if cell.gate_scores else "similarity"
    return _LIMITS.get(measure, measure)


def _sign(cell: Cell) -> int:
    """-1 for a Familiarity Network, whose score is minus the entropy which the paper shows."""
    return -1 if cell.gate_scores and cell.gate_scores.measure == "minus entropy" else 1


def _histograms(axes: Any, cells: Sequence[Cell]) -> None:
    (cell,) = cells
    if (scores := cell.gate_scores) is None:
        raise ValueError(f"{cell.method}: expected a method with a gate, got no gate scores")
    sign = _sign(cell)
    edges = [sign * edge for edge in scores.edges]
    for name, label in _GROUPS.items():
        counts: list[int] = getattr(scores, name)
        total = max(sum(counts), 1)
        axes.stairs(
            [100 * count / total for count in counts][::sign],
            edges[::sign],
            fill=True,
            alpha=0.55,
            color=style.METRICS[name],
            label=f"{label} ({sum(counts):,})",
        )
    _mark_threshold(axes, sign * scores.threshold)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.set_xlabel(_MEASURES.get(scores.measure, scores.measure))
    axes.set_ylabel("queries (%)")
    axes.set_title(f"Gate scores, {cell.edits:,} edits, {cell.data}, {cell.method}")
    axes.legend(frameon=False)


def _thresholds(axes: Any, cells: Cells) -> None:
    values = [float(name) for name, _ in cells]
    curves = [
        _Curve(
            f"{metric.capitalize()} {setting.upper()}",
            [getattr(cell.metric(metric), setting) for cell in cells.values()],
            style.METRICS[metric],
            line,
        )
        for metric in METRICS
        for setting, line in (("ag", "o-"), ("tf", "s:"))
    ]
    axes.set_xlabel(_limit(next(iter(cells.values()))))
    axes.set_ylabel("percent")
    axes.set_title("Metrics over the gate's threshold")
    _draw(axes, values, curves)


def _calibration(axes: Any, cells: Sequence[Cell]) -> None:
    """Table 16 on the facts set aside for it, where the threshold is chosen."""
    (cell,) = cells
    if (sweep := cell.calibration) is None:
        raise ValueError(f"{cell.method}: expected a calibrated gate, got no calibration")
    sign = _sign(cell)
    curves = [
        _Curve(metric.capitalize(), getattr(sweep, metric), style.METRICS[metric], "-")
        for metric in ("generality", "locality")
    ]
    _mark_threshold(axes, sign * sweep.threshold)
    axes.set_xlabel(_limit(cell))
    axes.set_ylabel("answers as they should be (%)")
    axes.set_title(f"Choosing the threshold, {cell.data}, {cell.method}")
    _draw(axes, [sign * value for value in sweep.thresholds], curves)


def _layers(axes: Any, results: Sequence[LayerResult]) -> None:
    layers = [result.layer for result in results]
    curves = []
    for metric in ("reliability", "generality"):
        values = [getattr(result, metric) for result in results]
        if all(value is not None for value in values):
            curves.append(_Curve(f"{metric.capitalize()} AG", values, style.METRICS[metric], "o-"))
    axes.set_xticks(layers)
    axes.set_xlabel("layer of the neuron")
    axes.set_ylabel("percent")
    axes.set_title("The right stored neuron in each layer")
    _draw(axes, layers, curves)


@dataclass(frozen=True)
class _Curve:
    """A line of a picture: its label, values (S,), colour, and format of `Axes.plot`."""

    label: str
    values: Sequence[float]
    color: str
    form: str


def _draw(axes: Any, x: Sequence[float], curves: Sequence[_Curve]) -> None:
    """Curves over `x` (S,), labelled at their right end."""
    last = max(range(len(x)), key=x.__getitem__)
    for curve in curves:
        axes.plot(x, curve.values, curve.form, color=curve.color, linewidth=2, markersize=4)
    ends = [style.Label(c.label, x[last], c.values[last], c.color) for c in curves]
    style.label_ends(axes, ends)


def _mark_threshold(axes: Any, threshold: float) -> None:
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axes.annotate(" threshold", (threshold, 0.5), xycoords=("data", "axes fraction"))
