"""What each number of a report is: protocol, questions, matching rule, tokens, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meg_editor.benchmark.cell import Cell
from meg_editor.evaluation import MAX_NEW_TOKENS, Pair
from meg_editor.evaluation.forms import FORM_TOKENS
from meg_editor.evaluation.natural import NATURAL_TOKENS

_AG = "equal to the target, without outer blanks and a final full stop"
_TF = "teacher-forced: share of the target's tokens that are ranked first, end of text included"
_GREEDY = "greedy answer up to the end of text"
_SIX = "reliability, generality, locality"
_ACCURACY = (
    "teacher-forced, without the end of text: share of the target's tokens that are ranked first, "
    "mean over tokens, prompts, facts; specificity: the data set's answer is the target, else the "
    "unedited model's"
)
_SUCCESS = (
    "p(new) > p(old) by the mean log-probability per token, without the end of text; specificity: "
    "p(old) > p(new) on neighbours with the old answer; mean over prompts, then facts"
)
_NATURAL = "greedy answer up to the model's own stop"
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
    "forms_answers": (
        "forms",
        _GREEDY,
        "has the target in it as whole words; where no edit is expected, equal to the unedited "
        f"model's first {FORM_TOKENS} tokens",
    ),
    "forced.token_accuracy": (_SIX, "none", _ACCURACY),
    "forced.success": ("with old answer", "none", _SUCCESS),
    "natural.exact": (_SIX, _NATURAL, _AG),
    "natural.tokens": (_SIX, _NATURAL, "share of the target's words that are in the answer"),
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
            "max_tokens": _max_tokens(cells, answer),
            "n": {str(edits): _count(cells, edits, kind) for edits in _counts(cells)},
        }
        for name, (kind, answer, matching) in _METRICS.items()
        if any(_has(cell, name) for cell in cells)
    }


def protocol(cells: Sequence[Cell]) -> str:
    """How the edits of `cells` were made."""
    chunks = [cell.sequential["chunk"] for cell in cells if cell.sequential]
    if not chunks:
        return "all edits at once"
    return f"edits one after another, {chunks[0]} at a time, on what the earlier ones left behind"


def summary(cells: Sequence[Cell]) -> str:
    """What the numbers of a report are, as one paragraph of Markdown."""
    numbers = []
    for edits in _counts(cells):
        counts = {noun: _count(cells, edits, kind) for kind, noun in _NOUNS.items()}
        known = [f"{count:,} {noun}" for noun, count in counts.items() if count]
        numbers.append(f"{edits:,} edits: {', '.join(known)}")
    by_method = {c.method: c.sequential["carried"] for c in cells if c.sequential}
    carried = "; ".join(f"{method}: {state}" for method, state in by_method.items())
    return (
        f"{protocol(cells).capitalize()}, asked once all edits are made. AG: {_GREEDY}, at most "
        f"{_max_tokens(cells, _GREEDY)} tokens, {_AG}. TF: {_TF}. Questions of all seeds, "
        f"{'; '.join(numbers)}. `metric_meta` in report.json says it of every number."
        + (f"\n\nCarried from chunk to chunk: {carried}.\n" if carried else "\n")
    )


_NOUNS = {
    "reliability": "edited prompts",
    "generality": "paraphrases",
    "locality": "other questions",
}


def _has(cell: Cell, metric: str) -> bool:
    name, _, part = metric.partition(".")
    value = getattr(cell, name)
    if isinstance(value, Pair):
        value = getattr(value, part)
    elif part and value:
        value = value.get(part, next(iter(value.values())).get(part))
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
    kinds = kind.split(", ")
    if cell.questions is not None:
        asked = (n for name, n in cell.questions.items() if name.partition(":")[0] in kinds)
        return sum(asked) or None
    if cell.gate_scores is not None and all(hasattr(cell.gate_scores, one) for one in kinds):
        return sum(sum(getattr(cell.gate_scores, one)) for one in kinds)
    return (cell.asked or cell.edits) if kind == "reliability" else None


def _max_tokens(cells: Sequence[Cell], answer: str) -> int | str | None:
    if answer == "none":
        return None
    known = [cell.max_tokens for cell in cells if cell.max_tokens is not None]
    if answer == _NATURAL:
        return max([NATURAL_TOKENS, *known])
    return max(known) if known else f"{MAX_NEW_TOKENS} (more where a target is longer)"
