"""An edit of a model: a request which is in force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from unicodedata import normalize

from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import digest

ID = 12  # hexadecimal digits: among a million edits two are equal once in 500 times


@dataclass(frozen=True, eq=False, repr=False)
class Edit(EditRequest):
    """An edit of a model; equal to any request for the same.

    Attributes:
        when: it was made, UTC in ISO 8601; "" if that is not known.
        by: "fit", "add", "replace", "merge" or "reattach".
        stored: whether its neuron is stored; else the trained generator gives it.

    Example:
        >>> edit = Edit("The capital of France is", "Lima", "France", by="add")
        >>> edit.id, edit == EditRequest("The capital of France is", "Lima", "France")
        ('c43ba61823cf', True)
    """

    when: str = ""
    by: str = "fit"
    stored: bool = True

    @classmethod
    def of(cls, request: EditRequest, when: str = "", by: str = "fit", stored: bool = True) -> Edit:
        """The edit which a request asks for; an edit stays what it is."""
        if isinstance(request, Edit):
            return request
        texts = (request.prompt, request.target_new, request.subject)
        return cls(*texts, request.rephrases, request.locality_prompts, when, by, stored)

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits, from prompt and target: a fact has one id everywhere."""
        return edit_id(self)

    @cached_property
    def key(self) -> str:
        """As `EditRequest.key`."""
        return super().key

    @property
    def state(self) -> str:
        """ "stored": its neuron is in the bank; "generated": the trained generator has it."""
        return "stored" if self.stored else "generated"

    @property
    def listed(self) -> dict[str, str | None]:
        """What a list of edits says of it, as JSON types."""
        names = ("id", "prompt", "target_new", "subject", "when", "by", "state")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        return f"Edit({self.id}: {self.prompt!r} -> {self.target_new!r}, {self.by}, {self.state})"


def edit_id(request: EditRequest) -> str:
    """Id of the edit which a request asks for.

    Example:
        >>> edit_id(EditRequest("The capital of France is", "Lima"))
        'c43ba61823cf'
    """
    return digest([request.key, normalize("NFC", request.target_new)])[:ID]


def edits_of(requests: Sequence[EditRequest], by: str = "fit") -> tuple[Edit, ...]:
    """The edits which requests ask for, made now.

    Example:
        >>> edits_of([EditRequest("The capital of France is", "Lima")], by="add")
        (Edit(c43ba61823cf: 'The capital of France is' -> 'Lima', add, stored),)
    """
    when = now()
    return tuple(Edit.of(request, when, by) for request in requests)


def now() -> str:
    """The time, UTC in ISO 8601, to the second.

    Example:
        >>> len(now())
        25
    """
    return datetime.now(UTC).isoformat(timespec="seconds")
