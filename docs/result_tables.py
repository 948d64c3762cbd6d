"""The tables of results, made from what is in examples/results: `built("RUN VIEW")`.

RUN[@EDITS,EDITS…] is a folder of examples/results, such as reference/world; without EDITS all its
numbers of edits are meant. VIEW is one of

    score      the Score, a row per method, a column per run and number of edits
    interval   the same with its 95 % interval over facts in brackets, of runs with one seed
    tradeoff   the same with Generality and Locality AG in brackets
    metrics    the metrics and seconds, a row per method
    strict     teacher-forced and natural metrics, of runs with --sequential or --judge natural
    growth     MeG's metrics, stages and memory, a row per number of edits
    forms      right decisions in prompt forms, a row per method that decides
    answers    right answers in prompt forms, a row per method
    abilities  what each method does: RUN/what_methods_do.json, by examples/what_methods_do.py
    tasks      general ability after edits: RUN/general_ability.json, by examples/general_ability.py
    cost       seconds, operations and memory of an edit: RUN/cost.json, by examples/cost.py
    demo       RUN/demo.json, the report of `meg-editor demo`
    published  RUN.json, what a paper prints of another model, each with its source
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meg_editor.benchmark import Cell, read_cells
from meg_editor.benchmark.style import is_ours
from meg_editor.benchmark.tables import (
    Column,
    forced_columns,
    form_answer_columns,
    form_columns,
    natural_columns,
    score_columns,
    table,
)

RESULTS = Path(__file__).resolve().parents[1] / "examples" / "results"
NAMES = {
    "counterfact": "CounterFact",
    "zsre": "ZsRE",
    "mquake": "MQuAKE",
    "unke": "UnKE",
    "knowedit": "KnowEdit",
    "wikibigedit": "WikiBigEdit",
}


@dataclass(frozen=True)
class Selection:
    """The cells of a run at one number of edits."""

    data: str
    edits: int
    cells: list[Cell]

    @property
    def title(self) -> str:
        """Such as "1,024 edits, 300 asked"."""
        seeds = len({cell.seed for cell in self.cells})
        asked = min(cell.asked or self.edits for cell in self.cells)
        parts = [f"{self.edits:,} edits"]
        parts += [f"{asked:,} asked"] if asked < self.edits else []
        parts += [f"{seeds} seeds"] if seeds > 1 else []
        return ", ".join(parts)


def selections(run: str) -> list[Selection]:
    """What RUN[@EDITS,…] of a marker means.

    Raises:
        SystemExit: there is no such run, or it lacks a number of edits.
    """
    name, _, wanted = run.partition("@")
    path = RESULTS / name / "report.json"
    if not path.exists():
        sys.exit(
            f"table of {run}: expected a run of examples/results, got {name}; there is no {path}"
        )
    cells = read_cells(path)
    known = sorted({cell.edits for cell in cells})
    counts = [int(count) for count in wanted.split(",")] if wanted else known
    if missing := set(counts) - set(known):
        sys.exit(f"table of {run}: expected some of {known} edits, got {sorted(missing)}")
    data = NAMES.get(cells[0].data, cells[0].data)
    return [Selection(data, n, [c for c in cells if c.edits == n]) for n in counts]


def methods(chosen: Sequence[Selection], label: Callable[[str], str]) -> dict[str, list[Cell]]:
    """Method -> its cells in all selections, the best at the most edits of the first run first."""
    first = [one for one in chosen if one.data == chosen[0].data]

    def rank(method: str) -> list[float]:
        scores = [max((c.score for c in s.cells if c.method == method), default=-1) for s in first]
        return [-score for score in reversed(scores)]

    names = dict.fromkeys(cell.method for one in chosen for cell in one.cells)
    return {
        label(name): [cell for one in chosen for cell in one.cells if cell.method == name]
        for name in sorted(names, key=rank)
    }


def bold_ours(method: str) -> str:
    return f"**{method}**" if is_ours(method) else method


def columns_of(chosen: Sequence[Selection], read: Callable[[Cell], float]) -> list[Column]:
    """A column per selection; named by its data where there are several."""
    several = len({one.data for one in chosen}) > 1

    def column(one: Selection) -> Column:
        ids = {id(cell) for cell in one.cells}
        title = f"{one.data}, {one.edits:,}" if several else f"{one.edits:,}"
        return Column(title, lambda cell: read(cell) if id(cell) in ids else None)

    return [column(one) for one in chosen]


def score(chosen: Sequence[Selection]) -> str:
    """The Score over runs and numbers of edits."""
    columns = columns_of(chosen, lambda cell: cell.score)
    return table(methods(chosen, bold_ours), columns, "Score")


def interval(chosen: Sequence[Selection]) -> str:
    """Score (its interval)."""

    def end(side: int) -> Callable[[Cell], float]:
        return lambda cell: cell.intervals["score"][side]

    return bracketed("Score (95 % interval)", chosen, (end(0), end(1)), "{} ({} to {})")


def tradeoff(chosen: Sequence[Selection]) -> str:
    """Score (Generality AG, Locality AG)."""
    reads = (lambda cell: cell.generality.ag, lambda cell: cell.locality.ag)
    return bracketed("Score (Gen AG, Loc AG)", chosen, reads, "{} ({}, {})")


def bracketed(
    title: str,
    chosen: Sequence[Selection],
    reads: Sequence[Callable[[Cell], float]],
    form: str,
) -> str:
    """The table of Scores with further numbers of each cell beside them."""
    scores, *others = (score_rows(chosen, read) for read in (lambda cell: cell.score, *reads))
    lines = table({}, columns_of(chosen, lambda cell: cell.score), title).splitlines()
    for name, entries in scores.items():
        rows = zip(entries, *(other[name] for other in others), strict=True)
        texts = ["-" if numbers[0] == "-" else form.format(*numbers) for numbers in rows]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def score_rows(chosen: Sequence[Selection], read: Callable[[Cell], float]) -> dict[str, list[str]]:
    """Method -> entries of its row."""
    text = table(methods(chosen, bold_ours), columns_of(chosen, read))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    return {name: entries for name, *entries in rows}


def metrics(chosen: Sequence[Selection]) -> str:
    """The metrics of every method; several selections are named in the rows."""
    columns = [*score_columns(), Column("s", lambda cell: cell.seconds_total, ",.0f")]
    if len(chosen) == 1:
        return table(methods(chosen, bold_ours), columns, chosen[0].title)
    rows = {}
    for one in chosen:
        label = f"{one.data}, {{}}, {one.title}"
        rows |= methods([one], lambda name, label=label: label.format(bold_ours(name)))
    return table(rows, columns)


def strict(chosen: Sequence[Selection]) -> str:
    """The columns of the strict protocols."""
    one = only_of("strict", chosen)
    columns = [*forced_columns([one.cells]), *natural_columns([one.cells])]
    return table(methods(chosen, bold_ours), columns, one.title)


def forms(chosen: Sequence[Selection]) -> str:
    """Right decisions by kind of prompt form."""
    one = only_of("forms", chosen)
    deciding = [replace(one, cells=[cell for cell in one.cells if cell.forms])]
    columns = form_columns([one.cells], lambda cell: cell.forms)
    return table(methods(deciding, bold_ours), columns, one.title)


def answers(chosen: Sequence[Selection]) -> str:
    """Right answers by kind of prompt form, and the traps fallen into."""
    one = only_of("answers", chosen)
    return table(methods(chosen, bold_ours), form_answer_columns([one.cells]), one.title)


def only_of(view: str, chosen: Sequence[Selection]) -> Selection:
    """The selection, where there is one.

    Raises:
        SystemExit: not one run at one number of edits.
    """
    if len(chosen) != 1:
        titles = "; ".join(one.title for one in chosen)
        sys.exit(f"table {view}: expected one RUN@EDITS, whose rows are its methods, got {titles}")
    return chosen[0]


def growth(chosen: Sequence[Selection]) -> str:
    """MeG's metrics, seconds of its stages and peak memory."""

    def stage(name: str) -> Column:
        return Column(f"{name} s", lambda cell: (cell.seconds or {}).get(name), ".0f")

    columns = [
        *score_columns(),
        Column("ms/edit", lambda cell: 1000 * cell.seconds_total / cell.edits, ".0f"),
        *map(stage, ("encoder", "collection", "gate", "generator")),
        Column("peak GB", lambda cell: cell.peak_memory / 1e9, ".2f"),
    ]
    ours = {f"{s.edits:,}": [c for c in s.cells if is_ours(c.method)] for s in chosen}
    return table(ours, columns, "edits")


def abilities(run: str) -> str:
    """What each method does beside answering its edits."""
    content = json.loads((RESULTS / run / "what_methods_do.json").read_text("utf-8"))
    rows: dict[str, dict[str, Any]] = content["rows"]
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cut = columns.index("base")  # answers, then what can be done with it: one table is too wide
    return "\n\n".join(
        _rows(f"{content['edits']} edits", some, rows) for some in (columns[:cut], columns[cut:])
    )


def tasks(run: str) -> str:
    """Right answers to the tasks of examples/general_ability.py after editing."""
    content = json.loads((RESULTS / run / "general_ability.json").read_text("utf-8"))
    rows: dict[str, dict[str, Any]] = content["rows"]
    return _rows(f"{content['edits']} edits", list(rows["unedited"]), rows)


def cost(run: str) -> str:
    """What an edit costs each method."""
    content = json.loads((RESULTS / run / "cost.json").read_text("utf-8"))
    rows: dict[str, dict[str, Any]] = content["rows"]
    return _rows(f"{content['edits']} edits", list(next(iter(rows.values()))), rows)


def published(run: str) -> str:
    """What a paper prints, with where it does."""
    content = json.loads((RESULTS / f"{run}.json").read_text("utf-8"))
    text = _lines(content["title"], content["columns"], content["rows"])
    return f"{text}\n\nSource: {content['source']}."


def _rows(title: str, columns: Sequence[str], rows: dict[str, dict[str, Any]]) -> str:
    texts = {
        bold_ours(name): [_plain(row.get(column, "-")) for column in columns]
        for name, row in rows.items()
    }
    return _lines(title, columns, texts)


def _lines(title: str, columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())])


def _plain(cell: str | float) -> str:
    if not isinstance(cell, float):
        return cell
    return f"{cell:.2g}" if 0 < abs(cell) < 1 else f"{cell:,.1f}".removesuffix(".0")


def demo(run: str) -> str:
    """What `meg-editor demo` reports, in the layout of what it prints."""
    content = json.loads((RESULTS / run / "demo.json").read_text("utf-8"))
    pairs = {"Rel": "reliability", "Gen": "generality", "Loc": "locality"}
    titles = [f"{short} {way}" for short in pairs for way in ("AG", "TF")]
    rows = {}
    for name, entry in content["methods"].items():
        six = [entry[metric][way] for metric in pairs.values() for way in ("ag", "tf")]
        size = entry.get("bytes_per_edit")
        numbers = (*six, entry["score"], entry["oracle_generality"], size and size / 1024)
        rows[bold_ours(name)] = ["-" if number is None else f"{number:.1f}" for number in numbers]
    return _lines("Method", [*titles, "**Score**", "Oracle gen", "KB/edit"], rows)


VIEWS = {
    "score": score,
    "interval": interval,
    "tradeoff": tradeoff,
    "metrics": metrics,
    "strict": strict,
    "forms": forms,
    "answers": answers,
    "growth": growth,
}


# Of other files than report.json.
OF_OTHER_FILES = {
    "abilities": abilities,
    "tasks": tasks,
    "cost": cost,
    "demo": demo,
    "published": published,
}


def built(marker: str) -> str:
    """The table of a marker.

    Raises:
        SystemExit: the marker names no run or no view.
    """
    *runs, view = marker.split()
    if view in OF_OTHER_FILES and len(runs) == 1:
        return OF_OTHER_FILES[view](runs[0])
    if view not in VIEWS or not runs:
        known = ", ".join([*VIEWS, *OF_OTHER_FILES])
        sys.exit(f"<!-- table: {marker} -->: expected RUN … and one of {known}")
    return VIEWS[view]([one for run in runs for one in selections(run)])
