"""Conflicts of new edits with those in force: the same question, in the same or in other words."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from unicodedata import normalize

from meg_editor.config.input_files import short_repr, type_and_repr
from meg_editor.config.unicode_text import canonical_text
from meg_editor.edits.edit import ID, Edit, edit_id
from meg_editor.edits.edition import Edition
from meg_editor.requests.request import EditRequest, RequestError, only_edits
from meg_editor.routing.routing import RoutedQuery

OnConflict = Literal["refuse", "replace", "keep"]
_SURE = 0.5  # of a verifier: lower than that another question is possible
_NEAR = 3  # edits which are named in place of an unknown one
_READ = 1000  # characters of an unknown text which are compared with those

Route = Callable[[list[str]], Sequence[RoutedQuery]]
Nearest = Callable[[str], Sequence[int]]


class ConflictError(RequestError):
    """Edits in force answer the same questions otherwise; the message has both ids."""


class UnknownEditError(ValueError):
    """No edit in force has this id or prompt; the message names the nearest ones."""


@dataclass
class Resolved:
    """What becomes of new requests.

    Attributes:
        new: those to add.
        outdated: rows of edits which give way to them.
        merged: requests which an edit in force answers already, with the id of that edit.
    """

    new: list[EditRequest] = field(default_factory=list)
    outdated: list[int] = field(default_factory=list)
    merged: list[tuple[EditRequest, str]] = field(default_factory=list)


def resolve(
    requests: Sequence[EditRequest], edition: Edition, route: Route, on_conflict: OnConflict
) -> Resolved:
    """Compare new requests with the edits in force.

    A request with the prompt of an edit, or which the router leads to one, is that edit once more
    if the targets are equal, and in conflict with it otherwise.

    Args:
        route: prompts -> routing decisions of the edition.
        on_conflict: "refuse"; "replace" the edit in force; "keep" both where the prompts differ,
            without a look at other words: one prompt has the later target.

    Raises:
        ConflictError: there are conflicts, and they are to be refused.
        ValueError: an unknown `on_conflict`.
    """
    if on_conflict not in ("refuse", "replace", "keep"):
        raise ValueError(
            f"on_conflict: expected 'refuse', 'replace' or 'keep', got {short_repr(on_conflict)}"
        )
    found = {r: row for r in requests if (row := edition.row_of_key.get(r.key)) is not None}
    others = [request for request in requests if request not in found]
    if others and edition.edits and on_conflict != "keep":
        routed = route([request.prompt for request in others])
        for request, decision in zip(others, routed, strict=True):
            sure = max(decision.threshold, _SURE if decision.verified else -1.0)
            if decision.is_edit and decision.score >= sure:
                found[request] = decision.edit
    result, conflicts, again = Resolved(), [], set()
    for request in requests:
        row = found.get(request)
        if row is not None and request.key == edition.edits[row].key and not request.subject:
            request = replace(request, subject=edition.edits[row].subject)
        if row is None:
            result.new.append(request)
        elif _same_target(request, edition.edits[row]):
            result.merged.append((request, edition.edits[row].id))
            again.add(row)
        elif on_conflict == "replace" or (
            on_conflict == "keep" and request.key == edition.edits[row].key
        ):
            result.new.append(request)
            result.outdated.append(row)
        else:
            conflicts.append(_described(request, edition.edits[row]))
    if conflicts:
        more = f" and {len(conflicts) - _NEAR} more" if len(conflicts) > _NEAR else ""
        raise ConflictError(
            f"in conflict with edits in force: {'; '.join(conflicts[:_NEAR])}{more}; nothing was "
            "changed: on_conflict='replace' takes the new ones, 'keep' keeps both where the "
            "prompts differ"
        )
    # An edit which is asked for once more stays, though another request is in conflict with it;
    # where that one has its prompt, what asks for it in other words becomes an edit of its own.
    rows = {edition.row_of_key.get(request.key) for request in result.new}
    gone = {edition.edits[row].id for row in rows if row is not None}
    result.new += [request for request, edit in result.merged if edit in gone]
    result.merged = [(request, edit) for request, edit in result.merged if edit not in gone]
    stays = again - rows
    result.outdated = [row for row in dict.fromkeys(result.outdated) if row not in stays]
    return result


def rows_of(named: Sequence[str | EditRequest], edition: Edition, nearest: Nearest) -> list[int]:
    """Rows of edits, or of those with these ids or prompts, each once.

    Args:
        nearest: text -> rows of the edits that resemble it.

    Raises:
        RequestError: something is neither a text nor an edit.
        UnknownEditError: there is no such edit.
    """
    rows: dict[int, None] = {}
    for each in named:
        text = edit_id(each) if isinstance(each, EditRequest) else each
        if not isinstance(text, str):
            raise RequestError(f"expected an edit, its id or prompt, got {type_and_repr(text)}")
        row = edition.row_of_id.get(text.strip())
        if row is None:
            row = edition.row_of_key.get(canonical_text(text.strip()))
        if row is None:
            raise UnknownEditError(_unknown(text, edition, nearest))
        rows[row] = None
    return list(rows)


def by_prompt(
    requests: Sequence[EditRequest], edition: Edition, nearest: Nearest
) -> tuple[EditRequest, ...]:
    """New targets of edits, with the prompt and, where none is given, the subject of each.

    Raises:
        RequestError: an edit gets two targets, or another subject with the target it has.
        UnknownEditError: there is no such edit.
    """
    named = []
    for request in requests:
        (row,) = rows_of([request.prompt], edition, nearest)
        edit = edition.edits[row]
        subject = request.subject or edit.subject
        if _same_target(request, edit) and subject != edit.subject:
            raise RequestError(
                f"{edit.id} {short_repr(edit.prompt)} has this target already: to give it another "
                "subject, remove it and add it again"
            )
        prompt = request.prompt if request.key == edit.key else edit.prompt
        named.append(replace(request, prompt=prompt, subject=subject))
    return only_edits(named)


def _unknown(text: str, edition: Edition, nearest: Nearest) -> str:
    if not edition.edits:
        return f"no edit has the id or prompt {short_repr(text)}: there are no edits"
    text = text.strip()[:_READ]
    ids = difflib.get_close_matches(text, edition.row_of_id, _NEAR) if len(text) < 2 * ID else []
    rows = [edition.row_of_id[each] for each in ids] or list(nearest(text))[:_NEAR]
    names = ", ".join(f"{edition.edits[r].id} {short_repr(edition.edits[r].prompt)}" for r in rows)
    return f"no edit has the id or prompt {short_repr(text)}; the nearest: {names}"


def _same_target(request: EditRequest, edit: Edit) -> bool:
    return normalize("NFC", request.target_new) == normalize("NFC", edit.target_new)


def _described(request: EditRequest, edit: Edit) -> str:
    return (
        f"{edit_id(request)} {short_repr(request.prompt)} -> {short_repr(request.target_new)} and "
        f"{edit.id} {short_repr(edit.prompt)} -> {short_repr(edit.target_new)}"
    )
