"""What each number of a report is: protocol, questions, matching rule, tokens, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meg_editor.benchmark.cell import Cell
from meg_editor.evaluation import MAX_NEW_TOKENS

_AG = "equal to the target, without outer blanks and a final full stop"
_TF = "teacher-forced: share of the target's tokens that are the likeliest, end of text included"
_GREEDY = "greedy answer up to the end of text"
# Metric -> kind of the questions, their answers, matching rule.
_METRICS: dict[str, tuple[str, str, str]] = {
    "reliability.ag": ("reliability", _GREEDY, _AG),
    "reliability.tf": ("reliability", "none", _TF),
    "generality.ag": ("generality", _GREEDY, _AG),
    "generality.tf": ("generality", "none", _TF),
    "locality.ag": ("locality", _GREEDY, f"the unedited model's answer is the target; {_AG}"),
    "locality.tf": ("locality", "none", f"the unedited model's answer is the target; {_TF}"),
    "worst_case_generality": (
        "generality",
        _GREEDY,
        f"a fact counts only if all its paraphrases are {_AG}",
    ),
    "oracle_generality": (
        "generality",
        "greedy answer with the right stored neuron",
        _AG,
    ),
    "retained_by_kind": (
        "locality",
        _GREEDY,
        "of true answers before the edits: equal to a true answer after them",
    ),
    "portability_by_kind": ("portability", _GREEDY, f"{_AG}, or to an alias of it"),
    "trapped_by_kind": ("trap", _GREEDY, f"the edit's target, which is wrong here; {_AG}"),
    "forms": ("forms", "none", "routed to its very edit, or to none where none is expected"),
    "forms_answers": ("forms", _GREEDY, "has the target in it as whole words"),
}


def metric_meta(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Metric -> what its numbers are, for the metrics that `cells` have.

    Returns:
        For each metric `protocol` (how the edits were made), `asked` (when), `questions`,
        `answer`, `matching`, `max_tokens` (of a generated answer; None: none is generated), and
        `n`: number of edits -> number of questions of all its seeds, None where a cell that was
        written before does not say.
    """
    return {
        name: {
            "protocol": protocol(cells),
            "asked": "once all edits are made",
            "questions": kind,
            "answer": answer,
            "matching": matching,
            "max_tokens": None if answer == "none" else _max_tokens(cells),
            "n": {str(edits): _count(cells, edits, kind) for edits in _counts(cells)},
        }
        for name, (kind, answer, matching) in _METRICS.items()
        if any(_has(cell, name) for cell in cells)
    }


def protocol(cells: Sequence[Cell]) -> str:
    """How the edits of `cells` were made."""
    return "all edits at once"


def summary(cells: Sequence[Cell]) -> str:
    """What the numbers of a report are, as one paragraph of Markdown."""
    numbers = []
    for edits in _counts(cells):
        asked = {kind: _count(cells, edits, kind) for kind in ("reliability", "generality")}
        known = [f"{n:,} {_NOUNS[kind]}" for kind, n in asked.items() if n]
        others = _count(cells, edits, "locality")
        known += [f"{others:,} other questions"] if others else []
        numbers.append(f"{edits:,} edits: {', '.join(known)}")
    return (
        f"{protocol(cells).capitalize()}, asked once all edits are made. AG: {_GREEDY}, at most "
        f"{_max_tokens(cells)} tokens, {_AG}. TF: {_TF}. Questions of all seeds, "
        f"{'; '.join(numbers)}. `metric_meta` in report.json says it of every number.\n"
    )


_NOUNS = {"reliability": "edited prompts", "generality": "paraphrases"}


def _has(cell: Cell, metric: str) -> bool:
    value = True if "." in metric else getattr(cell, metric)
    return value == value and value not in (None, {})  # NaN is no number


def _counts(cells: Sequence[Cell]) -> list[int]:
    return sorted({cell.edits for cell in cells})


def _count(cells: Sequence[Cell], edits: int, kind: str) -> int | None:
    """Questions of a kind at a number of edits: all methods of a seed are asked the same."""
    by_seed: dict[int, int] = {}
    for cell in cells:
        if cell.edits == edits and (number := _asked(cell, kind)) is not None:
            by_seed[cell.seed] = number
    return sum(by_seed.values()) if by_seed else None


def _asked(cell: Cell, kind: str) -> int | None:
    if cell.questions is not None:
        return sum(n for name, n in cell.questions.items() if name.partition(":")[0] == kind)
    counts: list[int] | None = getattr(cell.gate_scores, kind, None)
    if counts is not None:
        return sum(counts)
    return (cell.asked or cell.edits) if kind == "reliability" else None


def _max_tokens(cells: Sequence[Cell]) -> int | str:
    known = [cell.max_tokens for cell in cells if cell.max_tokens is not None]
    return max(known) if known else f"{MAX_NEW_TOKENS} (more where a target is longer)"
