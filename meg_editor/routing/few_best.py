"""The few edits which a verifier reads a prompt with."""

from __future__ import annotations

from collections.abc import Sequence

_VERIFIED = 4  # edits of which a prompt is verified, beside those its end resembles


def few_best(
    scores: Sequence[Sequence[float]],
    edits: Sequence[Sequence[int]],
    rows: Sequence[int],
    closing: int,
    itself: int | None = None,
) -> list[tuple[int, float, int]]:
    """What the prompt with the spans `rows` resembles most: (edit, similarity, span), not none.

    The first `closing` spans end the prompt: a list of other questions in front of them, which are
    edits too, does not crowd out what these resemble.

    Args:
        scores, edits: (S, C) of the edits which resemble each span most.
        itself: the edit whose prompt it is; it comes first, also where many resemble it.
    """
    found = [
        (min(similarity, 1.0), edit, row)  # rounding
        for row in rows
        for similarity, edit in zip(scores[row], edits[row], strict=True)
    ]
    best: dict[int, tuple[float, int]] = {} if itself is None else {itself: (1.0, rows[0])}
    for similarity, edit, row in sorted(found, reverse=True):
        best.setdefault(edit, (similarity, row))
    ends = {edits[row][0] for row in rows[:closing]}
    return [
        (edit, similarity, row)
        for place, (edit, (similarity, row)) in enumerate(best.items())
        if place < _VERIFIED or edit in ends
    ]
