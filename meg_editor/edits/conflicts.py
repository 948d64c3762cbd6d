"""Conflicts of new edits with those in force: the same question, in the same or in other words."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from unicodedata import normalize

from meg_editor.config.input_files import short_repr, type_and_repr
from meg_editor.config.unicode_text import canonical_text
from meg_editor.edits.edit import ID, Edit, edit_id
from meg_editor.edits.edition import Edition
from meg_editor.requests.request import EditRequest, RequestError, only_edits
from meg_editor.routing.named import is_named, numbered
from meg_editor.routing.routing import Candidate, RoutedQuery
from meg_editor.routing.verifier import Verifier, fact_text

OnConflict = Literal["refuse", "replace", "keep"]
_SURE = 0.5  # of a verifier: lower than that another question is possible
_ALIKE = 0.95  # similarity of near-duplicates: two relations of one subject are less alike
_NEAR = 3  # edits which are named in place of an unknown one
_READ = 1000  # characters of an unknown text which are compared with those

Route = Callable[[list[str]], Iterable[RoutedQuery]]
Nearest = Callable[[str], Sequence[int]]


class ConflictError(RequestError):
    """Edits in force answer the same questions otherwise; the message has both ids.

    Args:
        found: the conflicts, in words.
        option: how the caller names a way out of them.

    Example:
        >>> str(ConflictError("a and b", "--on-conflict {}")).partition(" takes")[0]
        'a and b; nothing was changed: --on-conflict replace'
    """

    def __init__(self, found: str, option: str = "on_conflict={!r}") -> None:
        self.found = found
        super().__init__(
            f"{found}; nothing was changed: {option.format('replace')} takes the new ones, "
            f"{option.format('keep')} keeps both where the prompts differ, as two facts need which "
            "only look alike"
        )


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
    requests: Sequence[EditRequest],
    edition: Edition,
    route: Route,
    on_conflict: OnConflict,
    verifier: Verifier | None = None,
) -> Resolved:
    """Compare new requests with the edits in force.

    A request with the prompt of an edit, or which asks the same in other words, is in conflict with
    it if the targets differ. If they are equal it is that edit once more, and else in other words:
    then only where both have the same subject and the prompts are near-duplicates, since what looks
    alike may be another fact; any other one becomes an edit of its own, with the same answer.

    Args:
        route: prompts -> routing decisions of the edition.
        on_conflict: "refuse"; "replace" the edit in force; "keep" both where the prompts differ,
            without a look at other words: one prompt has the later target.
        verifier: of the router.

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
    alike: dict[EditRequest, Candidate] = {}
    if others and edition.edits and on_conflict != "keep":
        alike = _in_other_words(others, edition, route, verifier)
        found.update({request: candidate.edit for request, candidate in alike.items()})
    result, conflicts, again, unnamed = Resolved(), [], set(), False
    for request in requests:
        row = found.get(request)
        if row is not None and request.key == edition.edits[row].key and not request.subject:
            request = replace(request, subject=edition.edits[row].subject)
        if row is None:
            result.new.append(request)
        elif _same_target(request, edition.edits[row]):
            if request in alike and not _same_fact(request, edition.edits[row], alike[request]):
                result.new.append(request)
                continue
            result.merged.append((request, edition.edits[row].id))
            again.add(row)
        elif on_conflict == "replace" or (
            on_conflict == "keep" and request.key == edition.edits[row].key
        ):
            result.new.append(request)
            result.outdated.append(row)
        else:
            unnamed |= bool(edition.edits[row].subject and not request.subject)
            conflicts.append(_described(request, edition.edits[row]))
    if conflicts:
        more = f" and {len(conflicts) - _NEAR} more" if len(conflicts) > _NEAR else ""
        hint = "; a fact about something else needs its subject" if unnamed else ""
        raise ConflictError(
            f"in conflict with edits in force: {'; '.join(conflicts[:_NEAR])}{more}{hint}"
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


def _in_other_words(
    requests: Sequence[EditRequest], edition: Edition, route: Route, verifier: Verifier | None
) -> dict[EditRequest, Candidate]:
    """Of requests with prompts of their own: the edit in force which asks the same.

    Two subjects which are given and differ are two questions. A verifier has to take each of the
    two prompts for the other: it may take a question about South Sudan for one about Sudan.
    """
    pairs = [
        (request, each)
        for request, decision in zip(requests, route([r.prompt for r in requests]), strict=True)
        if decision.is_edit
        for each in decision.candidates
        if (each.similarity if verifier is None else each.verified)
        >= max(decision.threshold, -1.0 if verifier is None else _SURE)
        and not _other_subject(request, edition.edits[each.edit])
    ]
    if verifier is not None and pairs:
        prompts = [edition.edits[candidate.edit].prompt for _, candidate in pairs]
        back = verifier.probability(prompts, [fact_text(request) for request, _ in pairs])
        limit = max(verifier.threshold, _SURE)
        pairs = [
            pair
            for pair, prompt, sure in zip(pairs, prompts, back.tolist(), strict=True)
            if sure >= limit and is_named(pair[0], numbered(prompt))
        ]
    return dict(reversed(pairs))  # of each request the best one, which is its first


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


def _same_fact(request: EditRequest, edit: Edit, candidate: Candidate) -> bool:
    """Whether nothing is lost without the request: so an unknown subject is another one."""
    named = bool(request.subject and edit.subject) and not _other_subject(request, edit)
    return named and candidate.similarity >= _ALIKE


def _other_subject(request: EditRequest, edit: Edit) -> bool:
    """Whether both subjects are given and differ, in more than case and width."""
    return bool(request.subject and edit.subject and _name(request.subject) != _name(edit.subject))


def _name(subject: str) -> str:
    return canonical_text(normalize("NFKC", subject)).casefold()


def _described(request: EditRequest, edit: Edit) -> str:
    return (
        f"{edit_id(request)} {short_repr(request.prompt)} -> {short_repr(request.target_new)} and "
        f"{edit.id} {short_repr(edit.prompt)} -> {short_repr(edit.target_new)}"
    )
