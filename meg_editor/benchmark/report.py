"""report.json, report.md and pictures of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.metric_meta import metric_meta, summary
from meg_editor.benchmark.plots import plot_benchmark
from meg_editor.benchmark.search import Trial
from meg_editor.benchmark.tables import markdown
from meg_editor.evaluation.report import machine, versions
from meg_editor.runtime.files import without_folder
from meg_editor.runtime.text_files import write_json, write_text


def write_report(
    cells: Sequence[Cell],
    out: Path,
    searches: Mapping[str, Sequence[Trial]] | None = None,
    plots: bool = False,
    command: str = "",
) -> None:
    """Write `cells` to `out`: report.json and report.md, with `plots` PNG files, each whole.

    report.json has the command, versions and machine of the run, and says of every metric what it
    is (`metric_meta`). Files of the model and the data have their names in it, without folders.
    Where facts were asked in prompt forms, report.json has the means over seeds at the largest
    number of edits as `methods.<name>.forms.<kind>` and `methods.<name>.forms_answers.<kind>`.

    Args:
        searches: trials among which the settings of each baseline were chosen.
        command: the command line.
    """
    content: dict[str, Any] = {
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "metric_meta": metric_meta(cells),
        "cells": _without_folders([cell.to_dict() for cell in cells]),
        "searches": searches or {},
    }
    if methods := _forms_by_method(cells):
        content["methods"] = methods
    write_json(out / "report.json", content)
    write_text(out / "report.md", report_text(cells))
    if plots:
        plot_benchmark(cells, out)


def report_text(cells: Sequence[Cell]) -> str:
    """report.md: what the numbers are, and all tables."""
    return f"{summary(cells)}\n{markdown(cells)}"


def _without_folders(value: Any) -> Any:
    """A value of JSON with the last part of every path alone: a report is to be shared."""
    if isinstance(value, dict):
        return {name: _without_folders(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return without_folder(value) if isinstance(value, str) else value


def _forms_by_method(cells: Sequence[Cell]) -> dict[str, dict[str, dict[str, float] | None]]:
    most = max((cell.edits for cell in cells), default=0)
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.edits == most and cell.forms_answers is not None:
            groups.setdefault(cell.method, []).append(cell)
    return {
        name: {
            "forms": _means([cell.forms for cell in group]),
            "forms_answers": _means([cell.forms_answers for cell in group]),
        }
        for name, group in groups.items()
    }


def _means(scores: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """Means by kind; None where there are no scores."""
    known = [one for one in scores if one is not None]
    kinds = dict.fromkeys(kind for one in known for kind in one)
    return {k: fmean(one[k] for one in known if k in one) for k in kinds} if known else None
