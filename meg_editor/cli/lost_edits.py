"""What a fit into a folder would lose of the edits there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meg_editor.config.input_files import short_repr
from meg_editor.requests.request import EditRequest


def check_nothing_is_lost(
    folder: Path, requests: Sequence[EditRequest], named: str, instead: str | None = None
) -> None:
    """Refuse a folder with edits that came after a fit: they are in no file of facts.

    Args:
        requests: what is to be fitted.
        named: the folder in words, such as "--out edits".
        instead: what else to do than to name another folder or delete this one.

    Raises:
        ValueError: edits would be lost.
    """
    from meg_editor.model.saved.changes import count_changes
    from meg_editor.model.saved.listing import saved_edits

    if changes := count_changes(folder):
        what = f"its edits were changed {changes} times since they were fitted"
    else:
        try:
            known = saved_edits(folder)
        except (OSError, ValueError):  # no edits, or none that can be read
            return
        given = {(request.key, request.target_new) for request in requests}
        lost = [e for e in known if e.by != "fit" and (e.key, e.target_new) not in given]
        if not lost:
            return
        what = f"{len(lost)} of its edits came later, such as {short_repr(lost[0].prompt)}"
    way = f"{instead}; or " if instead else ""
    raise ValueError(
        f"{named}: {what}, which would be lost: {way}name another folder, or delete this one"
    )
