"""Cells of a benchmark as Markdown, in the layout of the paper's tables 9 to 14."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from meg_editor.benchmark.cell import Cell

_METRICS = {"Rel": "reliability", "Gen": "generality", "Loc": "locality"}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        read: the number of a cell; None or NaN where it has none.
        form: format of the number.
    """

    title: str
    read: Callable[[Cell], float | None]
    form: str = ".1f"


def markdown(cells: Sequence[Cell]) -> str:
    """The Score over the number of edits; for each number the scores, diagnostics and costs.

    Numbers are means over seeds, ± their standard deviation where there are several.
    """
    parts = []
    counts = sorted({cell.edits for cell in cells})
    if len(counts) > 1:
        parts.append(f"### {cells[0].data}, Score over the number of edits (percent)\n")
        parts.append(_overview(cells, counts) + "\n")
    for edits in counts:
        rows: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell.edits == edits:
                rows.setdefault(cell.method, []).append(cell)
        groups = list(rows.values())
        seeds = max(map(len, groups))
        fewest = min(cell.asked or edits for group in groups for cell in group)
        some = f", {fewest} of them asked" if fewest < edits else ""
        samples = f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"
        parts.append(f"### {cells[0].data}, {edits} edits{some}, {samples} (percent)\n")
        parts.append(score_table(rows) + "\n")
        for title, columns in (
            ("Teacher-forced, as lifelong editors report", forced_columns(groups)),
            ("Answers up to the model's own stop, as WILD judges", natural_columns(groups)),
            ("Diagnostics", _diagnostic_columns(groups)),
            ("Beyond the six", _further_columns(groups)),
            ("Prompt forms, right decisions", form_columns(groups, lambda cell: cell.forms)),
            ("Prompt forms, right answers", form_answer_columns(groups)),
            ("Cost", _cost_columns(groups)),
        ):
            if not columns:
                continue
            parts.append(f"{title}, {edits} edits\n")
            parts.append(table(rows, columns) + "\n")
    return "\n".join(parts)


def scores_over_edits(cells: Sequence[Cell]) -> dict[str, dict[int, list[float]]]:
    """Method -> edits -> Scores of its seeds; the method which is best at its most edits first."""
    scores: dict[str, dict[int, list[float]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.edits):
        if not math.isnan(cell.score):
            scores.setdefault(cell.method, {}).setdefault(cell.edits, []).append(cell.score)
    return dict(sorted(scores.items(), key=lambda item: -fmean([*item[1].values()][-1])))


def score_table(rows: Mapping[str, Sequence[Cell]]) -> str:
    """The six metrics and the Score, in the layout of the paper's tables: one row per name.

    Beside Generality stands its worst case: a fact counts only if all its paraphrases are right.
    """
    return table(rows, score_columns())


def score_columns() -> list[Column]:
    """Those of `score_table`."""

    def columns(title: str, metric: str) -> list[Column]:
        return [
            Column(f"{title} AG", lambda cell: cell.metric(metric).ag),
            Column(f"{title} TF", lambda cell: cell.metric(metric).tf),
        ]

    six = [column for title, metric in _METRICS.items() for column in columns(title, metric)]
    six.insert(4, Column("Gen worst", lambda cell: cell.worst_case_generality))
    return [*six, Column("**Score**", lambda cell: cell.score)]


def _overview(cells: Sequence[Cell], counts: Sequence[int]) -> str:
    def column(count: int) -> Column:
        return Column(f"{count:,}", lambda cell: cell.score if cell.edits == count else None)

    best_first = scores_over_edits(cells)
    rows = {method: [c for c in cells if c.method == method] for method in best_first}
    return table(rows, [column(count) for count in counts])


def forced_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    """Teacher-forced efficacy, generality and specificity; none of cells of older versions."""
    return _nested_columns(groups, lambda cell: cell.forced)


def natural_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    """Exact match and share of the target's words; none without `--judge natural`."""
    return _nested_columns(groups, lambda cell: cell.natural)


def _nested_columns(
    groups: Sequence[Sequence[Cell]],
    read: Callable[[Cell], Mapping[str, Mapping[str, float]] | None],
) -> list[Column]:
    """A column per pair of names, such as "token accuracy, efficacy"."""

    def column(outer: str, inner: str) -> Column:
        title = f"{outer.replace('_', ' ').capitalize()}, {inner}"
        return Column(title, lambda cell: (read(cell) or {}).get(outer, {}).get(inner))

    every = (read(cell) or {} for group in groups for cell in group)
    names = dict.fromkeys((outer, inner) for v in every for outer, of in v.items() for inner in of)
    return [column(*pair) for pair in names]


def _diagnostic_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    columns = [
        Column("Oracle gen", lambda cell: cell.oracle_generality),
        Column("Accepted paraphrases", _accepted_paraphrases),
        Column("Misrouted", _misrouted, ".2f"),
        Column("Accepted others", _accepted_others),
    ]
    for kind in _kinds(groups, lambda cell: cell.locality_by_kind):
        columns += [
            Column(f"Loc {kind}", _locality_of(kind)),
            _entry(f"Still true {kind}", kind, lambda cell: cell.retained_by_kind),
        ]
    return columns


def _further_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    """Traps fallen into, text quality, and what only some data sets ask."""

    def columns(title: str, read: Callable[[Cell], Mapping[str, float]]) -> list[Column]:
        return [_entry(title.format(kind), kind, read) for kind in _kinds(groups, read)]

    def titled(read: Callable[[Cell], Mapping[str, float]]) -> list[Column]:
        names = dict.fromkeys(name for group in groups for cell in group for name in read(cell))
        return [_entry(name.replace("_", " ").capitalize(), name, read) for name in names]

    return [
        *columns("Trapped, {}", lambda cell: cell.trapped_by_kind),
        *columns("Port {}", lambda cell: cell.portability_by_kind),
        Column("Perplexity", lambda cell: cell.perplexity, ".2f"),
        Column("Fluency, bits", lambda cell: cell.fluency, ".2f"),
        *titled(lambda cell: (cell.long_answers or {}).get("generality", {})),
        *titled(lambda cell: cell.multi_hop or {}),
    ]


def form_columns(
    groups: Sequence[Sequence[Cell]], read: Callable[[Cell], Mapping[str, float] | None]
) -> list[Column]:
    """A column per kind of form, in the order of the forms; none where none were asked."""

    def of(cell: Cell) -> Mapping[str, float]:
        return read(cell) or {}

    kinds = dict.fromkeys(kind for group in groups for cell in group for kind in of(cell))
    return [_entry(kind, kind, of) for kind in kinds]


def form_answer_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    """Beside the kinds of forms the traps fallen into: there fewer are better."""
    columns = form_columns(groups, lambda cell: cell.forms_answers)
    traps = _kinds(groups, lambda cell: cell.trapped_by_kind) if columns else []
    return columns + [_entry(f"Trapped, {t}", t, lambda cell: cell.trapped_by_kind) for t in traps]


def _kinds(groups: Sequence[Sequence[Cell]], read: Callable[[Cell], Iterable[str]]) -> list[str]:
    return sorted({kind for group in groups for cell in group for kind in read(cell)})


def _entry(title: str, name: str, read: Callable[[Cell], Mapping[str, float]]) -> Column:
    return Column(title, lambda cell: read(cell).get(name))


def _locality_of(kind: str) -> Callable[[Cell], float | None]:
    def read(cell: Cell) -> float | None:
        pair = cell.locality_by_kind.get(kind)
        return pair.ag if pair else None

    return read


def _accepted_paraphrases(cell: Cell) -> float | None:
    if (gate := cell.gate) is None:
        return None
    return _share(gate.true_positives, gate.true_positives + gate.false_negatives)


def _misrouted(cell: Cell) -> float | None:
    if (gate := cell.gate) is None:
        return None
    return _share(gate.misrouted, gate.true_positives + gate.false_negatives)


def _accepted_others(cell: Cell) -> float | None:
    if (gate := cell.gate) is None:
        return None
    return _share(gate.false_positives, gate.false_positives + gate.true_negatives)


def _share(count: int, total: int) -> float | None:
    return 100 * count / total if total else None


def _cost_columns(groups: Sequence[Sequence[Cell]]) -> list[Column]:
    def stage_column(stage: str) -> Column:
        def read(cell: Cell) -> float | None:
            seconds = (cell.seconds or {}).get(stage)
            return None if seconds is None else 1000 * seconds / cell.edits

        return Column(f"of these {stage}", read, ".0f")

    def latency(title: str, query: str, name: str, form: str = ".1f") -> Column:
        def read(cell: Cell) -> float | None:
            measured = cell.latency.get(query)
            return None if measured is None else float(getattr(measured, name))

        return Column(title, read, form)

    stages = dict.fromkeys(s for group in groups for cell in group for s in cell.seconds or ())
    return [
        Column("s in all", lambda cell: cell.seconds_total, ".0f"),
        Column("ms/edit", lambda cell: 1000 * cell.seconds_total / cell.edits, ".0f"),
        *map(stage_column, stages),
        Column("KB/edit", lambda cell: cell.bytes_per_edit and cell.bytes_per_edit / 1024),
        Column("Peak MiB", lambda cell: cell.peak_memory / 2**20, ".0f"),
        latency("Edited p50 ms", "edited", "p50"),
        latency("p95", "edited", "p95"),
        latency("Unedited p50 ms", "unedited", "p50"),
        latency("p95", "unedited", "p95"),
        latency("tokens/s", "edited", "tokens_per_second", ".0f"),
    ]


def table(
    rows: Mapping[str, Sequence[Cell]], columns: Sequence[Column], heading: str = "Method"
) -> str:
    """Markdown: a row per name, of the means over its cells, ± their standard deviation."""
    lines = [
        f"| {heading} | {' | '.join(column.title for column in columns)} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    for method, group in rows.items():
        entries = [_number([c.read(cell) for cell in group], c.form) for c in columns]
        lines.append(f"| {method} | {' | '.join(entries)} |")
    return "\n".join(lines)


def _number(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "-"
    several = len(known) > 1 and all(map(math.isfinite, known))
    spread = f" ± {stdev(known):{form}}" if several else ""
    return f"{fmean(known):{form}}{spread}"
