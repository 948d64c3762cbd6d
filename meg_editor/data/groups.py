"""Connected components: rows which share a name, directly or through others."""

from __future__ import annotations

from collections.abc import Iterable


def groups(rows: Iterable[Iterable[str]]) -> list[int]:
    """For each row of names the first row of its group.

    Example:
        >>> groups([["a"], ["b"], ["a", "c"], ["c"]])
        [0, 1, 0, 0]
    """
    parent: list[int] = []

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[str, int] = {}
    for row, names in enumerate(rows):
        parent.append(row)
        for name in names:
            one, other = root(first.setdefault(name, row)), root(row)
            parent[max(one, other)] = min(one, other)
    return [root(row) for row in range(len(parent))]
