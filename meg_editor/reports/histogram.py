"""Histogram of routing scores as SVG, with the threshold as a line."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from meg_editor.reports.model_report import ScoreGroup

_BINS = 40
_WIDTH, _LEFT, _RIGHT = 1000, 190, 992  # of the drawing, and the ends of the axis
_TOP, _ROW, _BAR, _BOTTOM = 26, 70, 54, 44  # heights: threshold label, row, highest bar, axis


def histogram(groups: Sequence[ScoreGroup], threshold: float) -> str:
    """SVG with a row of bars for each group, from the lowest score to the highest.

    No bar has scores on both sides of the threshold. A row's highest bar fills its height; a bar of
    one prompt can be seen.

    Args:
        threshold: lowest score of an edit.

    Example:
        >>> from meg_editor.reports.model_report import Share
        >>> svg = histogram([ScoreGroup("as edited", (1.0, 0.9), Share(2, 2))], 0.5)
        >>> svg[:4], svg.count("<rect"), "2 of 2 let through" in svg
        ('<svg', 2, True)
    """
    scores = [score for group in groups for score in group.scores]
    edges = bin_edges([*scores, threshold, 0.0, 1.0] if _in_unit(scores) else scores, threshold)
    low, high = edges[0], edges[-1]

    def x(score: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (score - low) / (high - low)

    bottom = _TOP + _ROW * len(groups)
    parts = []
    for row, group in enumerate(groups):
        parts += _row(group, edges, [x(edge) for edge in edges], threshold, _TOP + _ROW * row)
    line = x(threshold)
    anchor, shift = ("end", -6) if line > _WIDTH / 2 else ("start", 6)
    parts += [
        f'<line class="threshold" x1="{line:.1f}" x2="{line:.1f}" y1="4" y2="{bottom}"/>',
        f'<text class="threshold-label" x="{line + shift:.1f}" y="14" text-anchor="{anchor}">'
        f"threshold {threshold:.3f}</text>",
    ]
    for step in range(6):
        score = low + (high - low) * step / 5
        anchor = "start" if step == 0 else "end" if step == 5 else "middle"
        parts.append(
            f'<text x="{x(score):.1f}" y="{bottom + 14}" text-anchor="{anchor}">{score:.2f}</text>'
        )
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">routing score</text>')
    label = "; ".join(f"{group.name}: {group.let_through} let through" for group in groups)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" role="img" '
        f'aria-label="Routing scores. {escape(label)}">{"".join(parts)}</svg>'
    )


def bin_edges(scores: Sequence[float], threshold: float) -> list[float]:
    """Edges of about 40 bins from the lowest score to the highest, one of them the threshold.

    Example:
        >>> edges = bin_edges([0.0, 1.0], 0.2)
        >>> len(edges), edges[0], edges[8], edges[-1]
        (41, 0.0, 0.2, 1.0)
    """
    low, high = min([*scores, threshold]), max([*scores, threshold])
    if low == high:
        low, high = low - 0.5, high + 0.5
    below = round(_BINS * (threshold - low) / (high - low))
    if low < threshold < high:
        below = min(_BINS - 1, max(1, below))
    above = _BINS - below
    first = [low + (threshold - low) * step / below for step in range(below)]
    return [*first, *(threshold + (high - threshold) * step / above for step in range(above)), high]


def _in_unit(scores: Sequence[float]) -> bool:
    return all(0 <= score <= 1 for score in scores)


def _row(
    group: ScoreGroup, edges: Sequence[float], xs: Sequence[float], threshold: float, top: int
) -> list[str]:
    counts = [0] * (len(edges) - 1)
    for score in group.scores:
        counts[max(0, min(len(counts) - 1, sum(edge <= score for edge in edges) - 1))] += 1
    base, most = top + _ROW - 6, max([1, *counts])
    parts = [
        f'<text class="name" x="0" y="{base - 22}">{escape(group.name)}</text>',
        f'<text x="0" y="{base - 4}">{group.let_through} let through</text>',
    ]
    for place, count in enumerate(counts):
        if count:
            height = max(2.0, _BAR * count / most)
            side = "through" if edges[place] >= threshold else "alone"
            span = f"{edges[place]:.3f} to {edges[place + 1]:.3f}: {count}"
            parts.append(
                f'<rect class="{side}" x="{xs[place] + 0.75:.1f}" y="{base - height:.1f}" '
                f'width="{max(1.0, xs[place + 1] - xs[place] - 1.5):.1f}" height="{height:.1f}">'
                f"<title>{span}</title></rect>"
            )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{base}" y2="{base}"/>')
    return parts
