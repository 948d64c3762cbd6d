"""One style for all pictures: our method in front, in one strong colour; rivals muted.

Lines and points are labelled where they end, without a legend box; labels are shifted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OURS, VARIANT, BASE = "#0b57d0", "#7aa7ec", "#9aa0a6"
# Tints of grey: neighbours can be distinguished, none competes with ours.
RIVALS = ("#8c8f94", "#b58f70", "#86a386", "#a58fb0", "#7d9ea8", "#b8898f")
# Of pictures that show one method.
METRICS = {"reliability": OURS, "generality": "#5b93e6", "locality": "#7c8087"}
_FONT = 8.0  # points
_GAP = 1.25  # lines of text between the middles of two labels


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point of a picture.

    Attributes:
        x, y: the point, in data units.
        color: that of the line or point.
        bold: of our own method.
    """

    text: str
    x: float
    y: float
    color: str
    bold: bool = False


def is_ours(method: str) -> bool:
    """Whether a method is the default MeG.

    Example:
        >>> is_ours("meg"), is_ours("meg-default"), is_ours("meg-paper")
        (True, True, False)
    """
    return method in ("meg", "meg-default")


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method -> keywords of `Axes.plot`. Ours is thick and in front of all others.

    Variants of MeG are a light tint of its colour, the unedited model and rivals are muted.

    Example:
        >>> both = styles(["meg", "memit"])
        >>> both["meg"]["zorder"] > both["memit"]["zorder"]
        True
    """
    rivals = [method for method in methods if not method.startswith("meg")]
    result: dict[str, dict[str, Any]] = {}
    for method in methods:
        if is_ours(method):
            result[method] = {"color": OURS, "linewidth": 3.2, "markersize": 7, "zorder": 10}
        elif method.startswith("meg"):
            result[method] = {"color": VARIANT, "linewidth": 1.4, "markersize": 4, "zorder": 6}
        else:
            color = RIVALS[rivals.index(method) % len(RIVALS)]
            color = BASE if method == "unedited" else color
            result[method] = {"color": color, "linewidth": 1.2, "markersize": 3.5, "zorder": 3}
    return result


def clean(axes: Any) -> None:
    """A faint grid, and no frame at the top and the right."""
    axes.grid(alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places nearest to `values` (least squares) that are at least `gap` apart, in order.

    Pools adjacent violators (isotonic regression) of `values[i] - i * gap`.

    Args:
        values: in ascending order.
        low, high: the first and the last place stay within them, as far as there is room.

    Example:
        >>> spread([0.0, 1.0, 50.0], gap=4.0, low=0.0, high=100.0)
        [0.0, 4.0, 50.0]
    """
    pools: list[tuple[float, int]] = []  # (mean, size)
    for place, value in enumerate(values):
        mean, size = value - place * gap, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    top = max(low, high - (len(values) - 1) * gap)
    return [min(max(mean, low), top) + place * gap for place, mean in enumerate(flat)]


def label_ends(axes: Any, labels: Sequence[Label], column: float | None = None) -> None:
    """Write labels to the right of their points, shifted apart where they would overlap.

    Call it last: it needs the limits and the size of the axes.

    Args:
        column: x of all labels, in data units; None: beside each point. A thin line leads from a
            label to its point where it is elsewhere.
    """
    low, high = axes.get_ylim()
    gap = _line_height(axes) * (high - low)
    rows = sorted(labels, key=lambda label: (label.x if column is None else column, label.y))
    texts = [_write(axes, row, row.x if column is None else column, row.y) for row in rows]
    for group in _side_by_side(texts):
        group.sort(key=lambda text: text.xy[1])
        places = spread([text.xy[1] for text in group], gap, low + gap / 2, high)
        for text, y in zip(group, places, strict=True):
            text.set_y(y)


def label_points(axes: Any, labels: Sequence[Label], column_from: float) -> None:
    """Write labels beside points, where there is most room around them.

    Points right of `column_from` are many, as a rule: their labels stand in a column at the right.
    """
    crowded = [label for label in labels if label.x >= column_from]
    label_ends(axes, crowded, column=axes.get_xlim()[1])
    _line_height(axes)  # the column takes room from the axes
    taken, lines = [*map(_extent, axes.texts)], _drawn(axes)
    for label in labels:
        if label.x < column_from:
            texts = [_write(axes, label, label.x, label.y, *side) for side in _SIDES]
            taken.append(_roomiest(axes, texts, taken, lines))


# Offsets in points and alignments: right, left, above and below of a point, then farther away.
_SIDES = (
    ((9.0, 0.0), "left", "center"),
    ((-9.0, 0.0), "right", "center"),
    ((0.0, 7.0), "center", "bottom"),
    ((0.0, -7.0), "center", "top"),
    ((20.0, 16.0), "left", "center"),
    ((-20.0, 16.0), "right", "center"),
    *(((20.0, 15.0 * step), "left", "center") for step in range(2, 6)),
)


def _side_by_side(texts: Sequence[Any]) -> list[list[Any]]:
    """Groups of texts, given in columns from left to right, that leave no room between columns."""
    groups: list[list[Any]] = []
    end = float("-inf")
    for text in texts:
        extent = _extent(text)
        if groups and extent.x0 < end:
            groups[-1].append(text)
        else:
            groups.append([text])
            end = float("-inf")
        end = max(end, extent.x1)
    return groups


def _extent(text: Any) -> Any:
    """The box of a text, in pixels, without the line that leads to its point."""
    from matplotlib.text import Text

    text.get_window_extent()  # moves it to where its point is now
    return Text.get_window_extent(text)


def _drawn(axes: Any) -> list[Any]:
    """Boxes (pixels) of what the lines of a picture cover."""
    from matplotlib.transforms import Bbox

    boxes = []
    for line in axes.lines:
        corners = axes.transData.transform(line.get_xydata())
        for start, end in zip(corners, [*corners[1:], corners[-1]], strict=True):
            for share in np.linspace(0, 1, 16):
                x, y = start + share * (end - start)
                boxes.append(Bbox.from_extents(x - 5, y - 5, x + 5, y + 5))
    return boxes


def _roomiest(axes: Any, texts: Sequence[Any], taken: Sequence[Any], lines: Sequence[Any]) -> Any:
    """The extent of the one of `texts` that lies inside, overlaps no other text (`taken`) and the
    fewest lines; the others go."""
    extents, inside = [*map(_extent, texts)], axes.get_window_extent()

    def overlaps(place: int) -> tuple[int, int]:
        extent = extents[place]
        outside = extent.x0 < inside.x0 or extent.y0 < inside.y0
        hidden = outside + sum(extent.overlaps(other) for other in taken)
        return hidden, sum(extent.overlaps(other) for other in lines)

    chosen = min(range(len(texts)), key=overlaps)
    for place, text in enumerate(texts):
        if place != chosen:
            text.remove()
    return extents[chosen]


def _line_height(axes: Any) -> float:
    """Distance of two labels as a share of the height of the axes, once they are laid out."""
    axes.figure.draw_without_rendering()
    points: float = 72 * axes.get_window_extent().height / axes.figure.dpi
    return _GAP * _FONT / points


def _write(
    axes: Any,
    label: Label,
    x: float,
    y: float,
    offset: tuple[float, float] = (9.0, 0.0),
    across: str = "left",
    along: str = "center",
) -> Any:
    """A text at (x, y) in data units, moved by `offset` points, with a thin line to its point."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import offset_copy

    leader = {"arrowstyle": "-", "color": label.color, "linewidth": 0.5}
    text = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(x, y),
        textcoords=offset_copy(axes.transData, axes.figure, *offset, units="points"),
        color=label.color,
        fontsize=_FONT,
        fontweight="bold" if label.bold else "normal",
        horizontalalignment=across,
        verticalalignment=along,
        arrowprops={**leader, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3},
        annotation_clip=False,
        zorder=12 if label.bold else 11,
    )
    text.set_path_effects([withStroke(linewidth=2.0, foreground="white")])
    return text
