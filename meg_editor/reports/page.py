"""The report of an edited model as one HTML file, which needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from meg_editor.edits.change import Change
from meg_editor.edits.edit import Edit
from meg_editor.reports.histogram import histogram
from meg_editor.reports.model_report import ModelReport
from meg_editor.reports.texts import html, size, when

_CHANGES = 100  # the last ones
_SHOWN = 3  # edits of a change
_NOTHING = "<i>no answer</i>"


def page(report: ModelReport) -> str:
    """The report as HTML: style and pictures inside, no script, nothing from elsewhere.

    What the model or its user wrote is escaped.
    """
    folder = files(__package__)
    parts = {
        "style": folder.joinpath("style.css").read_text("utf-8"),
        "name": html(report.name),
        "base": html(report.base),
        "count": _edits(report.edits),
        "saved": when(report.saved),
        "measured": when(report.measured),
        "tiles": _tiles(report),
        "sample": _sample(report),
        "edits": _edits_table(report),
        "forms": _forms_table(report),
        "gate": _gate(report),
        "others": _others(report),
        "same": f"{report.same} answers are the same",
        "costs": _costs_table(report),
        "changes": _changes(report.changes),
        "settings": _settings(report),
        "versions": _versions(report),
    }
    return Template(folder.joinpath("page.html").read_text("utf-8")).substitute(parts)


def _edits(count: int) -> str:
    return f"{count:,} edit" if count == 1 else f"{count:,} edits"


def _tiles(report: ModelReport) -> str:
    per_edit, route = report.bytes_per_edit, report.costs.route
    tiles = [
        ("edits", f"{report.edits:,}", f"{len(report.changes)} changes since the fit"),
        ("right", report.right.percent, f"{report.right}, as they were edited"),
        ("in other words", report.other_words.percent, f"{report.other_words} get to their edit"),
        (
            "left alone",
            report.left_alone.percent,
            f"{report.left_alone} prompts for something else",
        ),
        ("same answers", report.same.percent, f"{report.same} of those left alone"),
        ("an edit takes", "–" if per_edit is None else size(per_edit), "neuron, gate and index"),
        (
            "routing",
            "–" if route is None else f"{route:.1f} ms",
            f"one prompt, on {report.costs.device}",
        ),
    ]
    return "\n".join(
        f'<div class="tile"><span class="label">{html(label)}</span>'
        f'<span class="value">{html(value)}</span><span class="note">{html(note)}</span></div>'
        for label, value, note in tiles
    )


def _sample(report: ModelReport) -> str:
    asked = len(report.answers)
    if asked == report.edits:
        return "All of them are asked."
    return f"A sample of {asked:,} of the {report.edits:,} edits, drawn with seed {report.seed}."


def _edits_table(report: ModelReport) -> str:
    rows = [
        [
            f"<code>{html(each.edit.id)}</code>",
            html(each.edit.prompt),
            html(each.before) or _NOTHING,
            html(each.after) or _NOTHING,
            html(each.edit.target_new),
            "yes" if each.is_right else '<b class="no">no</b>',
        ]
        for each in report.answers
    ]
    return _table(("id", "prompt", "before", "after", "target", "right"), rows, texts=(1, 2, 3, 4))


def _forms_table(report: ModelReport) -> str:
    rows = [
        [
            html(form.name),
            html(form.example),
            f"{form.decisions.percent}<small>{form.decisions}</small>",
            f"{form.answers.percent}<small>{form.answers}</small>",
        ]
        for form in report.forms
    ]
    heads = ("form", "for example", "decisions", "answers")
    return _table(heads, rows, texts=(1,), numbers=(2, 3))


def _gate(report: ModelReport) -> str:
    if report.threshold is None:
        return "<p>There are no edits, so nothing is let through.</p>"
    drawing = histogram(report.scores, report.threshold)
    return (
        f'<div class="wide">{drawing}</div>\n<p class="note">'
        f"{html(report.judge.capitalize())} decides: a prompt with a score of at least "
        f"{report.threshold:.3f} gets the neuron of an edit. A row's highest bar fills its height; "
        "a single prompt can be seen.</p>"
    )


def _others(report: ModelReport) -> str:
    rows = [
        [
            html(kind.name),
            html(kind.example),
            f"{kind.left_alone.percent}<small>{kind.left_alone}</small>",
        ]
        for kind in report.others
    ]
    return _table(("kind", "for example", "left alone"), rows, texts=(1,), numbers=(2,))


def _costs_table(report: ModelReport) -> str:
    costs, per_edit = report.costs, report.bytes_per_edit
    rows = [
        ("neurons (generator)", size(costs.generator)),
        ("gate", size(costs.gate)),
        ("index of the edited prompts", size(costs.index)),
        ("of these three, an edit", "–" if per_edit is None else size(per_edit)),
        ("text encoder", size(costs.encoder)),
        ("verifier, beside the encoder", size(costs.verifier) if costs.verifier else "none"),
        ("base model, unchanged", size(costs.base)),
        ("folder on the disk", size(costs.folder)),
        (
            f"routing a prompt alone, median, on {costs.device}",
            "–" if costs.route is None else f"{costs.route:.1f} ms",
        ),
    ]
    return _table(("part", "cost"), [[html(text) for text in row] for row in rows], numbers=(1,))


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return "<p>None since the fit.</p>"
    rows = [
        [
            str(change.number),
            when(change.when),
            html(f"undo of {change.undoes}" if change.undoes else change.kind),
            html(_some(change.added.edits)),
            html(_some(change.removed.edits)),
        ]
        for change in reversed(changes[-_CHANGES:])
    ]
    earlier = len(changes) - len(rows)
    note = f'<p class="note">{earlier:,} earlier ones are not shown.</p>' if earlier else ""
    heads = ("", "when", "change", "added", "removed")
    return _table(heads, rows, texts=(3, 4)) + note


def _some(edits: Sequence[Edit]) -> str:
    lines = [f"{edit.prompt} → {edit.target_new}" for edit in edits[:_SHOWN]]
    if more := len(edits) - len(lines):
        lines.append(f"and {more:,} more")
    return "\n".join(lines)


def _settings(report: ModelReport) -> str:
    if not report.settings:
        return "<p>All are the defaults.</p>"
    rows = [
        [f"<code>{html(name)}</code>", html(json.dumps(value, ensure_ascii=False))]
        for name, value in report.settings.items()
    ]
    return _table(("setting", "value"), rows, texts=(1,))


def _versions(report: ModelReport) -> str:
    names = dict.fromkeys((*report.measured_with, *report.saved_with))
    rows = [
        [html(name), *(html(by.get(name, "–")) for by in (report.saved_with, report.measured_with))]
        for name in names
    ]
    return _table(("package", "saved with", "measured with"), rows)


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: Sequence[int] = (),
    numbers: Sequence[int] = (),
) -> str:
    """A table of cells in HTML.

    Args:
        texts: columns of anybody's texts, in any script.
        numbers: columns of numbers.
    """
    kinds = {**dict.fromkeys(numbers, ' class="number"'), **dict.fromkeys(texts, ' dir="auto"')}
    head = "".join(
        f'<th scope="col"{kinds[place] if place in numbers else ""}>{html(text)}</th>'
        for place, text in enumerate(heads)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kinds.get(place, '')}>{cell}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
