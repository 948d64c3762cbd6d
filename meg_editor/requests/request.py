"""Edit requests: a prompt, its new target, and texts for evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unicodedata import normalize

from meg_editor.config.input_files import short_names, short_repr, type_and_repr
from meg_editor.config.unicode_text import bad_character, canonical_text, has_visible_character

_SUBJECT = 1000  # characters; prompts and targets are limited by the model's context
_CASED = 4  # letters of a subject that may be a common word
# field -> its names in EasyEdit's and KnowEdit's records
SPELLINGS: dict[str, tuple[str, ...]] = {
    "prompt": (),
    "target_new": (),
    "subject": (),
    "rephrases": ("rephrase_prompt", "rephrase"),
    "locality_prompts": ("locality_prompt",),
}
REQUIRED = ("prompt", "target_new")


class RequestError(ValueError):
    """An edit request is malformed or contradicts another; the message names row and field.

    Example:
        >>> EditRequest.from_mapping({"prompt": "The capital of France is"}, "facts.json, entry 7")
        Traceback (most recent call last):
        ...
        meg_editor.requests.request.RequestError: facts.json, entry 7: field 'target_new' is missing
        (found 'prompt')
    """


@dataclass(frozen=True, eq=False)
class EditRequest:
    """One edit: the model shall answer `prompt` with `target_new`.

    `rephrases` and `locality_prompts` serve evaluation, and encoder tuning where the request is
    pseudo-knowledge. Those of an edit are never trained on.

    Texts stay as given: Unicode forms, invisible joiners, line breaks and indentation are kept.
    Only white space around a text is removed: an answer follows its prompt after one blank. So a
    block of code as a target loses the indentation of its first line, and of no other.

    Attributes:
        prompt: the query, without a prompt template.
        target_new: the new answer.
        subject: the entity in the prompt, if known; it sharpens routing. At most 1,000 characters.
        rephrases: paraphrases of the prompt, for Generality.
        locality_prompts: queries whose answers must stay, for Locality.

    Example:
        >>> EditRequest("The capital of France is", "Lima", subject="France").key
        'The capital of France is'
    """

    prompt: str
    target_new: str
    subject: str | None = None
    rephrases: tuple[str, ...] = ()
    locality_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "target_new", "subject"):
            text = getattr(self, name)
            if isinstance(text, str):
                object.__setattr__(self, name, text.strip())

    @property
    def texts(self) -> tuple[object, ...]:
        """All of it, by which requests are compared."""
        texts = (self.prompt, self.target_new, self.subject)
        return (*texts, self.rephrases, self.locality_prompts)

    def __eq__(self, other: object) -> bool:
        return self.texts == other.texts if isinstance(other, EditRequest) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.texts)

    @property
    def key(self) -> str:
        """Canonical form of the prompt: requests with equal keys edit the same prompt.

        That is NFC without invisible characters, white space normalised; case counts.
        """
        return canonical_text(self.prompt)

    @classmethod
    def from_mapping(cls, row: Mapping[str, Any], where: str = "request") -> EditRequest:
        """A request from one row of user data, validated.

        Accepts EasyEdit's spellings too: `rephrase_prompt` or `rephrase` for `rephrases`,
        `locality_prompt` or the prompts of `locality` for `locality_prompts`, each one text or a
        list, and a `prompt` with one `{}` to be filled with `subject`.

        Raises:
            RequestError: naming `where` and the field, for anything missing, not text, without a
                visible character, or with NUL, another control character, a byte order mark or a
                lone surrogate inside.

        Example:
            >>> row = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Lima"}
            >>> EditRequest.from_mapping(row).prompt
            'The capital of France is'
        """
        prompt = _text(row, "prompt", where)
        subject = _text(row, "subject", where) if row.get("subject") not in (None, "") else None
        if subject is not None and len(subject) > _SUBJECT:
            raise RequestError(
                f"{where}: field 'subject': expected the name of what the prompt is about, at most "
                f"{_SUBJECT:,} characters, got {len(subject):,}; shorten it, or leave it out"
            )
        # Braces beside the subject are the prompt's own: "In Python, {} is an empty".
        if subject is not None and prompt.count("{}") == 1 and not _names(prompt, subject):
            prompt = prompt.replace("{}", subject)
        locality = _several(row, "locality_prompts", where)
        return cls(
            prompt=prompt,
            target_new=_text(row, "target_new", where),
            subject=subject,
            rephrases=_several(row, "rephrases", where),
            locality_prompts=locality or _locality(row.get("locality"), where),
        )


@dataclass(frozen=True)
class MergedRequests:
    """Requests with one entry per prompt.

    Attributes:
        requests: in the order of the first row of each prompt.
        duplicates: rows that repeated an earlier prompt with the same target; their rephrases and
            locality prompts were added to those of the first row.
    """

    requests: tuple[EditRequest, ...]
    duplicates: int


def merge_requests(
    rows: Iterable[EditRequest | Mapping[str, Any]], places: Sequence[str] | None = None
) -> MergedRequests:
    """Validate rows, merge repeated prompts, refuse contradictions.

    Args:
        rows: requests, or mappings with at least `prompt` and `target_new`.
        places: where each row comes from ("facts.csv, line 7"), for errors; default "request 0".

    Raises:
        RequestError: a row is malformed, two rows give one prompt (equal `EditRequest.key`)
            different targets (both are named), or there is no row at all. Targets are compared in
            NFC.

    Example:
        >>> row = {"prompt": "The capital of France is", "target_new": "Lima"}
        >>> merged = merge_requests([row, {**row, "subject": "France"}])
        >>> merged.requests[0].subject, merged.duplicates
        ('France', 1)
    """
    check_several(rows)
    first: dict[str, tuple[EditRequest, str]] = {}
    duplicates = 0
    for index, row in enumerate(rows):
        where = places[index] if places else f"request {index}"
        request = request_of(row, where)
        key = request.key
        if key not in first:
            first[key] = (request, where)
            continue
        earlier, earlier_where = first[key]
        if normalize("NFC", earlier.target_new) != normalize("NFC", request.target_new):
            raise RequestError(
                f"{where} and {earlier_where} ask for different answers to the same prompt "
                f"{short_repr(request.prompt)}: {short_repr(request.target_new)} and "
                f"{short_repr(earlier.target_new)}; keep one"
            )
        first[key] = (_joined(earlier, request), earlier_where)
        duplicates += 1
    if not first:
        raise RequestError("no edit requests: expected at least one row with prompt and target_new")
    return MergedRequests(tuple(request for request, _ in first.values()), duplicates)


def request_of(row: EditRequest | Mapping[str, Any], where: str = "request") -> EditRequest:
    """A row as a validated request.

    Raises:
        RequestError: it is no request and no mapping, or as `EditRequest.from_mapping`.

    Example:
        >>> request_of({"prompt": "2 + 2 =", "target_new": "5"}).target_new
        '5'
    """
    if isinstance(row, EditRequest):
        given = {name: getattr(row, name) for name in SPELLINGS}
        row = {name: each for name, each in given.items() if each or name in REQUIRED}
    if not isinstance(row, Mapping):
        raise RequestError(
            f"{where}: expected an object with 'prompt' and 'target_new', got {type_and_repr(row)}"
        )
    return EditRequest.from_mapping(row, where)


def only_edits(rows: Iterable[EditRequest | Mapping[str, Any]]) -> tuple[EditRequest, ...]:
    """Requests without their evaluation texts: prompts, targets and subjects only.

    An editing method must not see `rephrase_prompt`, `locality` and `portability`.

    Raises:
        RequestError: as `merge_requests`.

    Example:
        >>> only_edits([{"prompt": "p", "target_new": "t", "rephrase_prompt": "q"}])[0].rephrases
        ()
    """
    check_several(rows)
    fields = ("prompt", "target_new", "subject")
    return merge_requests(
        {field: row[field] for field in fields if row.get(field) is not None}
        if isinstance(row, Mapping)
        else replace(row, rephrases=(), locality_prompts=())
        if isinstance(row, EditRequest)
        else row  # merge_requests refuses it
        for row in rows
    ).requests


def check_several(rows: object, what: str = "edits") -> None:
    """Refuse what is no list; a mapping would be taken for the list of its fields.

    Raises:
        RequestError: a text, a single row, or what cannot be iterated.

    Example:
        >>> check_several([{"prompt": "2 + 2 =", "target_new": "5"}])
    """
    if isinstance(rows, Mapping | EditRequest):
        raise RequestError(
            f"request 0: expected an object, got str, a field of a single edit; expected a list of "
            f"{what}, got {type_and_repr(rows)}: put it in a list"
        )
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise RequestError(f"expected a list of {what}, got {type_and_repr(rows)}")


def _joined(earlier: EditRequest, later: EditRequest) -> EditRequest:
    """Two rows of one edit merged: the texts of the earlier row come first."""
    rephrases = dict.fromkeys(earlier.rephrases + later.rephrases)
    locality_prompts = dict.fromkeys(earlier.locality_prompts + later.locality_prompts)
    return replace(
        earlier,
        subject=earlier.subject or later.subject,
        rephrases=tuple(rephrases),
        locality_prompts=tuple(locality_prompts),
    )


def _names(prompt: str, subject: str) -> bool:
    """Whether the subject stands in the prompt, not as a part of a word.

    In any case, but for short ones: "it" is not the novel It.
    """
    case = re.IGNORECASE if len(subject) > _CASED else 0
    return bool(re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt, case))


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise RequestError(f"{where}: field {name!r} is missing (found {short_names(row)})")
    value = row[name]
    if value is None:
        raise RequestError(f"{where}: field {name!r} is null: expected text")
    if not isinstance(value, str):
        raise RequestError(f"{where}: field {name!r} must be text, got {type_and_repr(value)}")
    if not has_visible_character(value):
        hint = ": it has no visible character" if value.strip() else ""
        raise RequestError(f"{where}: field {name!r} is empty{hint}")
    if flaw := bad_character(value):
        raise RequestError(f"{where}: field {name!r} holds {flaw}; remove it")
    return value.strip()


def _several(row: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """Under its name or another spelling: the first that holds texts."""
    for spelling in (field, *SPELLINGS[field]):
        if texts := _texts(row.get(spelling), field, where):
            return texts
    return ()


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    if hasattr(value, "tolist"):  # a column of lists which pandas read is one of arrays
        value = value.tolist()
    if value is None or (isinstance(value, str) and not value):
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, Sequence):
        raise RequestError(
            f"{where}: field {name!r} must be text or a list, got {type_and_repr(value)}"
        )
    return tuple(_text({name: item}, name, where) for item in items)


def _locality(value: Any, where: str) -> tuple[str, ...]:
    """The prompts of EasyEdit's `locality`: {name: {"prompt": ..., "ground_truth": ...}}.

    KnowEdit has a list of these under each name.
    """
    groups = list(value.values()) if isinstance(value, Mapping) else []
    return tuple(
        text
        for group in groups
        for entry in (group if isinstance(group, list) else [group])
        if isinstance(entry, Mapping)
        for text in _texts(entry.get("prompt"), "locality", where)
    )
