"""Prompts of a report: the edits in other words, and prompts which ask for something else."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence

from meg_editor.data.phrasebook.names import draw_name
from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.data.preprocessing import key
from meg_editor.data.prompt_forms import PromptForm
from meg_editor.edits.edit import Edit
from meg_editor.evaluation.forms import rendered
from meg_editor.lm.protocols import Tokenizer
from meg_editor.requests.prompts import PromptReader

_PLAIN = (
    PromptForm("Please answer: …", "prefix", "edit", "Please answer: {p}"),
    PromptForm("… Answer in one word.", "suffix", "edit", "{p} Answer in one word."),
)
_CHAT = PromptForm("in the chat template", "chat", "edit", "", (("user", "{p}"),))
_GIVEN = 2  # rephrases and locality prompts of an edit which are asked
_TRIES = 20  # draws for a prompt which names no edited subject

REPHRASED = "rephrases given with the edits"
INVENTED = "the edits' own prompts about an invented subject"
PHRASEBOOK = "questions and statements about other subjects"
LOCALITY = "locality prompts given with the edits"


def forms_of(
    edits: Sequence[Edit], tokenizer: Tokenizer, reader: PromptReader
) -> dict[str, list[tuple[int, str]]]:
    """The edits in other words: name of a form -> (place in `edits`, prompt) for each it fits.

    The chat template is that of the tokenizer, if it has one; the others are in the prompt
    template.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> edits = [Edit("The capital of France is", "Lima")]
        >>> forms_of(edits, tokenizer, PromptReader(tokenizer))["Please answer: …"]
        [(0, 'Please answer: The capital of France is')]
    """
    asked: dict[str, list[tuple[int, str]]] = {}
    has_template = bool(getattr(tokenizer, "chat_template", None))
    for form in (*_PLAIN, *([_CHAT] if has_template else [])):
        for place, edit in enumerate(edits):
            if prompt := rendered(form, {"p": edit.prompt}, tokenizer):
                text = prompt if form.turns else reader.wrap(prompt)
                asked.setdefault(form.id, []).append((place, text))
    given = [(place, text) for place, e in enumerate(edits) for text in e.rephrases[:_GIVEN]]
    if given:
        asked[REPHRASED] = [(place, reader.wrap(text)) for place, text in given]
    return asked


def other_prompts(
    edits: Sequence[Edit], sampled: Sequence[Edit], count: int, seed: int = 0
) -> dict[str, list[str]]:
    """Prompts which ask for no edit: kind -> at most `count` different ones, without template.

    The prompts of `sampled` with an invented name for their subject, where that is known; and what
    the phrasebook asks about subjects which no edit names. The locality prompts of `sampled` that
    are no edited prompts, if they have some.

    Args:
        edits: all N, none of which may be asked for.

    Example:
        >>> edits = [Edit("The capital of France is", "Lima", "France")]
        >>> prompts = other_prompts(edits, edits, 2)
        >>> prompts["the edits' own prompts about an invented subject"]
        ['The capital of Nairtfoon is', 'The capital of Quounheth is']
    """
    rng = random.Random(seed)
    taken = {key(edit.prompt) for edit in edits} | {key(t) for e in edits for t in e.rephrases}
    named = _Named(edits)
    prompts = {
        INVENTED: _different(_invented(sampled, named, rng, count), taken, count),
        PHRASEBOOK: _different(_phrased(named, rng, count), taken, count),
        LOCALITY: _different(
            (text for edit in sampled for text in edit.locality_prompts[:_GIVEN]), taken, count
        ),
    }
    return {kind: texts for kind, texts in prompts.items() if texts}


class _Named:
    """The subjects and prompts of edits, to tell whether a text may be about one."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._subjects = {edit.subject.casefold() for edit in edits if edit.subject}
        self._prompts = "\n".join(edit.prompt for edit in edits).casefold()

    def names(self, subject: str, prompt: str) -> bool:
        """Whether an edit is about `subject`, or `prompt` has the subject of one in it."""
        text = prompt.casefold()
        return subject.casefold() in self._prompts or any(name in text for name in self._subjects)


def _different(texts: Iterator[str], taken: Collection[str], count: int) -> list[str]:
    """The first `count` different texts whose key is not taken."""
    first: dict[str, str] = {}
    for text in texts:
        if key(text) not in taken:
            first.setdefault(key(text), text)
        if len(first) == count:
            break
    return list(first.values())


def _invented(
    edits: Sequence[Edit], named: _Named, rng: random.Random, count: int
) -> Iterator[str]:
    fitting = [
        (edit, edit.subject) for edit in edits if edit.subject and edit.subject in edit.prompt
    ]
    for _ in range(_TRIES * count if fitting else 0):
        edit, subject = rng.choice(fitting)
        name = draw_name(rng, [subject])
        prompt = edit.prompt.replace(subject, name)
        if not named.names(name, prompt):
            yield prompt


def _phrased(named: _Named, rng: random.Random, count: int) -> Iterator[str]:
    book = Phrasebook.load()
    for _ in range(_TRIES * count):
        kind = rng.choice(book.kinds)
        relation, name = rng.choice(kind.relations), draw_name(rng, kind.subjects)
        prompt = rng.choice(relation.statements + relation.questions).format(name)
        if not named.names(name, prompt):
            yield prompt
