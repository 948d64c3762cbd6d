"""Cells of a benchmark as Markdown, in the layout of the paper's tables 9 to 14."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

Cell = Mapping[str, Any]

_SCORES = tuple(
    (f"{title} {setting.upper()}", metric, setting)
    for title, metric in (("Rel", "reliability"), ("Gen", "generality"), ("Loc", "locality"))
    for setting in ("ag", "tf")
)


def markdown(cells: Sequence[Cell]) -> str:
    """The Score over the number of edits; for each number the scores, what holds them back, what
    they cost.

    Numbers are means over seeds, ± their standard deviation where there are several.
    """
    parts = []
    counts = sorted({cell["edits"] for cell in cells})
    if len(counts) > 1:
        parts.append(f"### {cells[0]['data']}, Score over the number of edits (percent)\n")
        parts.append(_overview(cells, counts) + "\n")
    for edits in counts:
        rows: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell["edits"] == edits:
                rows.setdefault(cell["method"], []).append(cell)
        seeds = max(len(group) for group in rows.values())
        asked = min(cell.get("asked", edits) for group in rows.values() for cell in group)
        some = f", {asked} of them asked" if asked < edits else ""
        parts.append(f"### {cells[0]['data']}, {edits} edits{some}, {seeds} seeds (percent)\n")
        parts.append(score_table(rows) + "\n")
        parts.append(f"What stands behind them, {edits} edits\n")
        parts.append(_table(rows, _diagnostic_columns(list(rows.values()))) + "\n")
        parts.append(f"Beyond the six, {edits} edits\n")
        parts.append(_table(rows, _further_columns(list(rows.values()))) + "\n")
        parts.append(f"Cost, {edits} edits\n")
        parts.append(_table(rows, _cost_columns(list(rows.values()))) + "\n")
    return "\n".join(parts)


def scores_over_edits(cells: Sequence[Cell]) -> dict[str, dict[int, list[float]]]:
    """Method -> edits -> Scores of its seeds; the method which is best at its most edits first."""
    found: dict[str, dict[int, list[float]]] = {}
    for cell in sorted(cells, key=lambda cell: cell["edits"]):
        if cell["score"] is not None:
            found.setdefault(cell["method"], {}).setdefault(cell["edits"], []).append(cell["score"])
    return dict(sorted(found.items(), key=lambda item: -fmean([*item[1].values()][-1])))


def score_table(rows: Mapping[str, Sequence[Cell]]) -> str:
    """The six metrics and the Score, in the layout of the paper's tables: one row per name."""
    return _table(rows, _score_columns())


Column = tuple[str, Callable[[Cell], float | None], str]


def _overview(cells: Sequence[Cell], counts: Sequence[int]) -> str:
    columns: list[Column] = [
        (f"{n:,}", lambda cell, n=n: cell["score"] if cell["edits"] == n else None, ".1f")  # type: ignore[misc]
        for n in counts
    ]
    best_first = scores_over_edits(cells)
    return _table({m: [c for c in cells if c["method"] == m] for m in best_first}, columns)


def _score_columns() -> list[Column]:
    columns: list[Column] = [
        (title, lambda cell, m=metric, s=setting: cell[m][s], ".1f")  # type: ignore[misc]
        for title, metric, setting in _SCORES
    ]
    return [*columns, ("**Score**", lambda cell: cell["score"], ".1f")]


def _diagnostic_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    kinds = sorted(
        {kind for group in groups for cell in group for kind in cell["locality_by_kind"]}
    )
    columns: list[Column] = [
        ("Gen, all paraphrases", lambda cell: cell["worst_case_generality"], ".1f"),
        ("Oracle gen", lambda cell: cell["oracle_generality"], ".1f"),
        ("Accepted paraphrases", lambda cell: _share(cell, "true_positives"), ".1f"),
        ("Misrouted", lambda cell: _share(cell, "misrouted"), ".2f"),
        ("Accepted others", lambda cell: _share(cell, "false_positives"), ".1f"),
    ]
    for kind in kinds:
        columns += [
            (f"Loc {kind}", lambda cell, k=kind: _kind(cell, k), ".1f"),  # type: ignore[misc]
            (
                f"Still true {kind}",
                lambda cell, k=kind: cell["retained_by_kind"].get(k),  # type: ignore[misc]
                ".1f",
            ),
        ]
    return columns


def _further_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    """Traps fallen into, text quality, and what only some data sets ask."""

    def kinds(name: str) -> list[str]:
        return sorted({kind for group in groups for cell in group for kind in cell[name]})

    columns: list[Column] = [
        (f"Trapped, {kind}", lambda cell, k=kind: cell["trapped_by_kind"].get(k), ".1f")  # type: ignore[misc]
        for kind in kinds("trapped_by_kind")
    ]
    columns += [
        (f"Port {kind}", lambda cell, k=kind: cell["portability_by_kind"].get(k), ".1f")  # type: ignore[misc]
        for kind in kinds("portability_by_kind")
    ]
    columns += [
        ("Perplexity", lambda cell: cell.get("perplexity"), ".2f"),
        ("Fluency, bits", lambda cell: cell["fluency"], ".2f"),
    ]
    columns += _nested(groups, "long_answers", "generality")
    columns += _nested(groups, "multi_hop")
    return columns


def _nested(groups: Sequence[Sequence[Cell]], *path: str) -> list[Column]:
    """A column for each number under `path`, where any cell has it."""

    def entries(cell: Cell) -> dict[str, float]:
        found: Any = cell
        for name in path:
            found = found.get(name) or {}
        return dict(found)

    names = dict.fromkeys(name for group in groups for cell in group for name in entries(cell))
    return [
        (name.replace("_", " ").capitalize(), lambda cell, n=name: entries(cell).get(n), ".1f")  # type: ignore[misc]
        for name in names
    ]


def _kind(cell: Cell, kind: str) -> float | None:
    found = cell["locality_by_kind"].get(kind)
    return found["ag"] if found else None


def _share(cell: Cell, name: str) -> float | None:
    """Of the queries which are edits (or are not), in percent."""
    gate = cell["gate"]
    if not gate:
        return None
    missed = "true_negatives" if name == "false_positives" else "false_negatives"
    caught = "false_positives" if name == "false_positives" else "true_positives"
    return float(100 * gate[name] / max(gate[missed] + gate[caught], 1))


def _cost_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    stages = dict.fromkeys(
        stage for group in groups for cell in group for stage in cell.get("seconds", {})
    )
    columns: list[Column] = [
        ("s in all", _seconds, ".0f"),
        ("ms/edit", lambda cell: 1000 * _seconds(cell) / cell["edits"], ".0f"),
    ]
    columns += [
        (f"of these {stage}", lambda cell, s=stage: _stage(cell, s), ".0f")  # type: ignore[misc]
        for stage in stages
    ]
    return [
        *columns,
        ("KB/edit", lambda cell: _kilobytes(cell), ".1f"),
        ("Peak MiB", lambda cell: cell["peak_memory"] / 2**20, ".0f"),
        ("Edited p50 ms", lambda cell: _latency(cell, "edited", "p50"), ".1f"),
        ("p95", lambda cell: _latency(cell, "edited", "p95"), ".1f"),
        ("Unedited p50 ms", lambda cell: _latency(cell, "unedited", "p50"), ".1f"),
        ("p95", lambda cell: _latency(cell, "unedited", "p95"), ".1f"),
        ("tokens/s", lambda cell: _latency(cell, "edited", "tokens_per_second"), ".0f"),
    ]


def _seconds(cell: Cell) -> float:
    """Of all stages when they ran: a stage that was resumed took its time in an earlier run."""
    return sum(cell["seconds"].values()) if "seconds" in cell else float(cell["seconds_total"])


def _stage(cell: Cell, stage: str) -> float | None:
    """Milliseconds per edit."""
    found = cell.get("seconds", {}).get(stage)
    return None if found is None else 1000 * found / cell["edits"]


def _kilobytes(cell: Cell) -> float | None:
    return cell["bytes_per_edit"] / 1024 if "bytes_per_edit" in cell else None


def _latency(cell: Cell, query: str, name: str) -> float | None:
    found = cell["latency"].get(query)
    return found[name] if found else None


def _table(rows: Mapping[str, Sequence[Cell]], columns: Sequence[Column]) -> str:
    lines = [
        f"| Method | {' | '.join(title for title, _, _ in columns)} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    for method, group in rows.items():
        cells = [_number([read(cell) for cell in group], form) for _, read, form in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {stdev(known):{form}}" if len(known) > 1 else ""
    return f"{fmean(known):{form}}{spread}"
