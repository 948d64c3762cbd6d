"""Replay of a log: the edition it leads to, and the history on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from meg_editor.edits.change import Change, History
from meg_editor.edits.edition import Edition, Rows
from meg_editor.edits.log import Line, shard_rows

Source = tuple[Rows, int]  # rows, and which of them


def replay(origin: Edition, logs: Sequence[tuple[Path, Sequence[Line]]]) -> tuple[Edition, History]:
    """The edition after all lines, and the history since `origin`.

    The arrays are put together once, whatever the number of changes.

    Args:
        logs: folders and the lines of their logs, in order.

    Raises:
        ValueError: a shard is damaged, or a line does not fit those before it.
    """
    history = History(origin)
    first = origin.rows(range(len(origin.edits))) if any(lines for _, lines in logs) else None
    alive: dict[str, Source] = {}
    if first is not None:
        alive = {edit.id: (first, row) for row, edit in enumerate(first.edits)}
    by_number: dict[int, Change] = {}
    for folder, lines in logs:
        for line in lines:
            content = line.content
            unknown = [each for each in content["removed"] if each not in alive]
            if unknown:
                raise ValueError(f"change {content['number']} removes {unknown[0]}, which is none")
            removed = gathered([alive.pop(each) for each in content["removed"]])
            undone = by_number.get(content["undoes"] or 0)
            added = undone.removed if undone else shard_rows(folder, line)
            alive.update({edit.id: (added, row) for row, edit in enumerate(added.edits)})
            change = Change(
                content["number"],
                content["kind"],
                content["when"],
                added,
                removed,
                not_learned=tuple(content["not_learned"]),
                undoes=content["undoes"],
            )
            by_number[change.number] = change
            history.changes.append(change)
    if first is None:
        return origin, history
    retained = {row for rows, row in alive.values() if rows is first}
    gone = [row for row in range(len(first.edits)) if row not in retained]
    return origin.changed(gone, gathered([s for s in alive.values() if s[0] is not first])), history


def gathered(sources: Sequence[Source]) -> Rows:
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
    states = [rows.states[row] for rows, row in sources if rows.states is not None]
    return Rows(
        tuple(rows.edits[row] for rows, row in sources),
        torch.stack([rows.anchors[row] for rows, row in sources]),
        torch.stack([rows.neurons[row] for rows, row in sources]),
        torch.stack(states) if states else None,
    )
