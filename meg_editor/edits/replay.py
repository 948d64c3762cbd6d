"""Replay of a log: the edition it leads to, and the history on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from meg_editor.edits.change import Change, History
from meg_editor.edits.edition import Edition, Rows
from meg_editor.edits.log import Line, applied, shard_rows

Source = tuple[Rows | None, int]  # rows, and which of them; None: those of the origin


def replay(origin: Edition, lines: Sequence[Line]) -> tuple[Edition, History]:
    """The edition after all lines of its logs, and the history since `origin`.

    The arrays are put together once, whatever the number of changes. Of the origin's edits only
    those which a change removed are looked up: a trained generator has to generate them.

    Raises:
        ValueError: a shard is damaged, or a line does not fit those before it.
    """
    history = History(origin)
    if not lines:
        return origin, history
    alive: dict[str, Source] = {edit.id: (None, row) for row, edit in enumerate(origin.edits)}
    steps = list(applied(lines, alive, lambda line: _sources(shard_rows(line))))
    # Rows of the origin that were removed: brought back, they come last.
    gone = sorted({row for _, out, _ in steps for rows, row in out.values() if rows is None})
    former, place = origin.rows(gone), {row: n for n, row in enumerate(gone)}

    def rows_of(sources: Iterable[Source]) -> Rows:
        return gathered([(former, place[n]) if rows is None else (rows, n) for rows, n in sources])

    for line, removed, added in steps:
        content = line.content
        history.changes.append(
            Change(
                content["number"],
                content["kind"],
                content["when"],
                rows_of(added.values()),
                rows_of(removed.values()),
                not_learned=tuple(content["not_learned"]),
                undoes=content["undoes"],
            )
        )
    later = [source for source in alive.values() if source[0] is not None or source[1] in place]
    return origin.changed(gone, rows_of(later)), history


def _sources(rows: Rows) -> dict[str, Source]:
    return {edit.id: (rows, row) for row, edit in enumerate(rows.edits)}


def gathered(sources: Sequence[tuple[Rows, int]]) -> Rows:
    """The rows of several sources, in order.

    Example:
        >>> import torch
        >>> from meg_editor.edits.edit import Edit
        >>> rows = Rows((Edit("a", "b"), Edit("c", "d")), torch.eye(2), torch.eye(2))
        >>> gathered([(rows, 1), (rows, 0)]).anchors.tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    if not sources:
        return Rows.none()
    first = sources[0][0]
    if len(sources) == len(first.edits) and all(
        rows is first and row == place for place, (rows, row) in enumerate(sources)
    ):
        return first
    states = [rows.states[row] for rows, row in sources if rows.states is not None]
    return Rows(
        tuple(rows.edits[row] for rows, row in sources),
        torch.stack([rows.anchors[row] for rows, row in sources]),
        torch.stack([rows.neurons[row] for rows, row in sources]),
        torch.stack(states) if states else None,
    )
