"""The model card of an edited model: Markdown with the front matter of the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template

from huggingface_hub import ModelCardData

from meg_editor.reports.model_report import ModelReport
from meg_editor.reports.texts import markdown, size

_EXAMPLES = 8
_LONGEST = 120  # characters of a text in a table
_TAGS = ["model-editing", "knowledge-editing", "meg_editor", "meg"]


def card(report: ModelReport) -> str:
    """The model card. The licence is left to its user: a comment in the front matter says so.

    What the model or its user wrote is escaped.
    """
    data = ModelCardData(
        base_model=report.base_id,
        base_model_relation="adapter" if report.base_id else None,
        library_name="meg_editor",
        pipeline_tag="text-generation",
        tags=_TAGS,
    )
    per_edit, route = report.bytes_per_edit, report.costs.route
    figures = [
        ("edits, asked as they were edited: right answers", report.right),
        ("edits in other words: routed to their edit", report.other_words),
        ("edits in other words: the target stands in the answer", report.other_words_answers),
        ("prompts which ask for something else: left alone", report.left_alone),
        ("of these left alone: the base model's answer", report.same),
    ]
    rows = [(name, f"{share.percent} ({share})") for name, share in figures]
    rows.append(("memory of an edit", "–" if per_edit is None else size(per_edit)))
    on = f"routing a prompt, on {report.costs.device}"
    rows.append((on, "–" if route is None else f"{route:.1f} ms"))
    examples = [
        (_cut(each.edit.prompt), _cut(each.before), _cut(each.after))
        for each in report.answers[:_EXAMPLES]
    ]
    text = Template(files(__package__).joinpath("card.md").read_text("utf-8")).substitute(
        front=data.to_yaml(),
        name=markdown(report.name),
        base=markdown(report.base),
        count=f"{report.edits:,} edit{'' if report.edits == 1 else 's'}",
        asked=f"{len(report.answers):,}",
        seed=report.seed,
        examples=_table(("prompt", "before", "after"), examples),
        figures=_table(("measured", "result"), rows),
        version=markdown(report.saved_with.get("meg_editor", "")),
        measured=report.measured[:10],
    )
    return text


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads)]
    lines += [[markdown(text) for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
