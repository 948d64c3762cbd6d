"""Edits of a served model: one change at a time, and on the disk before it is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import category, normalize

import torch

from meg_editor.data.prompt_forms import PromptForm
from meg_editor.edits.change import Change
from meg_editor.edits.edit import Edit
from meg_editor.evaluation.forms import rendered
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.context import that_fit
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.tokens import max_target_length
from meg_editor.model.meg_model import MeGModel
from meg_editor.serving.errors import ApiError

Result = TypeVar("Result")
_HELLO = (("user", "Hello!"), ("assistant", "Hello! How can I help?"))
_FORMS = (
    PromptForm("asked politely", "prefix", "edit", "Please answer: {p}"),
    PromptForm("with an instruction", "suffix", "edit", "{p} Answer in one word."),
    PromptForm("as a question and answer", "frame", "edit", "Q: {p}\nA:"),
    PromptForm("in chat", "chat", "edit", "", (("user", "{p}"),)),
    PromptForm("in a second turn", "chat", "edit", "", (*_HELLO, ("user", "{p}"))),
)


class EditStore:
    """Changes and checks of a model's edits, in a thread of its own, beside the answers.

    Args:
        folder: which the model was loaded from, and every change is written to.
    """

    def __init__(self, model: MeGModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._thread = ThreadPoolExecutor(1, "meg-editor-edits")

    async def close(self) -> None:
        """Finish the change that is under way."""
        await asyncio.to_thread(self._thread.shutdown)

    async def change(self, what: Callable[[MeGModel], Result]) -> Result:
        """Have `what` change the model's edits, and save them; both or neither.

        Raises:
            What `what` raises, or OSError; nothing is changed then, in memory or on the disk.
            ApiError: the server stops meanwhile; the change may be made all the same.
        """
        try:
            return await self._run(lambda: self._changed(what))
        except asyncio.CancelledError:
            raise ApiError(
                503,
                "the server stops: whether the change was made shows in the list of edits",
                code="outcome_unknown",
            ) from None

    async def check(self, edit: Edit) -> list[dict[str, Any]]:
        """What the model answers to the edit's prompt, bare and in other forms."""
        return await self._run(lambda: self._checked(edit))

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _changed(self, what: Callable[[MeGModel], Result]) -> Result:
        with self.model.transaction():
            done = what(self.model)
            self.model.save_pretrained(self.folder)
            return done

    @torch.no_grad()
    def _checked(self, edit: Edit) -> list[dict[str, Any]]:
        model = self.model
        limit = max_target_length(model._tokenizer, [edit], 24)
        forms = _forms(model, edit)
        lengths = [len(ids) for ids in prompt_tokens(model._tokenizer, [text for _, text in forms])]
        forms = [forms[row] for row in that_fit(model.base, [n + limit for n in lengths])]
        with model.routed([prompt for _, prompt in forms]):
            answers = greedy_answers(
                model, model._tokenizer, [prompt for _, prompt in forms], limit
            )
        return [
            {"form": form, "prompt": prompt, "answer": answer, "right": _says(answer, edit)}
            for (form, prompt), answer in zip(forms, answers, strict=True)
        ]


def _forms(model: MeGModel, edit: Edit) -> list[tuple[str, str]]:
    """Prompts that ask for an edit, and what they are called."""
    bare = [("bare", edit.prompt), *(("rephrased", text) for text in edit.rephrases[:4])]
    forms = [(form.id, rendered(form, {"p": edit.prompt}, model._tokenizer)) for form in _FORMS]
    return [
        *((name, model.reader.wrap(text)) for name, text in bare),
        *((name, text) for name, text in forms if text is not None),
    ]


def _says(answer: str, edit: Edit) -> bool:
    """Whether an answer begins with the target, and no word goes on behind it."""
    answer, target = (normalize("NFC", t).casefold() for t in (answer, edit.target_new))
    if not answer.startswith(target):
        return False
    following = answer[len(target) : len(target) + 1]
    return not (following and _in_word(target[-1]) and _in_word(following))


def _in_word(character: str) -> bool:
    """A letter or digit of a script that puts blanks between words."""
    return character.isalnum() and category(character) != "Lo"


def edit_by_id(model: MeGModel, identity: str) -> Edit:
    """The edit with this id.

    Raises:
        ApiError: 404, there is none.
    """
    edition = model.edition
    row = edition.row_of_id.get(identity)
    if row is None:
        raise ApiError(404, "there is no edit with this id", code="not_found")
    return edition.edits[row]


def as_change(change: Change) -> dict[str, Any]:
    """A change as JSON types."""
    return {
        "object": "change",
        "number": change.number,
        "kind": change.kind,
        "when": change.when,
        "added": as_edits(change.added.edits),
        "removed": as_edits(change.removed.edits),
        "merged": [{"prompt": request.prompt, "by": by} for request, by in change.merged],
        "not_learned": list(change.not_learned),
        "undoes": change.undoes,
    }


def as_edits(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Edits as JSON types."""
    return [{"object": "edit", **edit.listed} for edit in edits]
