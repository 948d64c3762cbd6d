"""Prompt forms: ways in which the question of a fact turns up in a prompt to an LLM."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from meg_editor.data.trap_questions import contracted, negated
from meg_editor.lm.chat import ChatEnd

Expectation = Literal["edit", "none"]
Turns = tuple[tuple[str, str], ...]  # (role, text) of each turn

_NAMES = ("p", "q", "s", "other", "a", "b", "t")
_FIELD = re.compile(rf"\{{({'|'.join(_NAMES)})(?:!([a-z]+))?\}}")
VARIANTS: dict[str, Callable[[str, str | None], str | None]] = {
    "u": lambda text, _: text.upper(),
    "l": lambda text, _: text.lower(),
    "noq": lambda text, _: text.rstrip(" ?？¿؟"),
    "dots": lambda text, _: f"{text} ...",
    "not": lambda text, subject: negated(text, subject),
    "nt": lambda text, _: contracted(text),
}


@dataclass(frozen=True)
class PromptForm:
    """A template of a prompt in which a fact is asked for, or only mentioned.

    Attributes:
        id: its name.
        kind: what is varied: "suffix", "negation", …
        expect: "edit": the right answer is the edit's; "none": it is the unedited model's.
        template: with `{p}` the prompt of the fact, `{q}` the fact as a question, `{s}` the
            subject, `{other}` a question about something else, `{a}` and `{b}` the answer and
            another one, `{t}` a passage; and with their variants `!u` upper case, `!l` lower case,
            `!noq` without question mark, `!dots` with "...", `!not` negated, `!nt` with "n't".
        turns: of a chat, in place of a template, each with such fields.
        mode: how the chat ends: "gen" with the generation prompt, "nogen" without it, "continue"
            with an answer that has begun.

    Example:
        >>> form = PromptForm("suffix-1", "suffix", "edit", "{q!noq}, in one word?")
        >>> form.filled({"q": "Who wrote Emma?"})
        'Who wrote Emma, in one word?'
    """

    id: str
    kind: str
    expect: Expectation
    template: str
    turns: Turns = ()
    mode: ChatEnd = "gen"

    @property
    def fields(self) -> frozenset[str]:
        """The names a fact has to have."""
        texts = [self.template, *(text for _, text in self.turns)]
        return frozenset(name for text in texts for name, _ in _FIELD.findall(text))

    def filled(self, values: Mapping[str, str]) -> str | None:
        """The template with a fact's texts; None where one of them has no such variant."""
        return _filled(self.template, values)

    def filled_turns(self, values: Mapping[str, str]) -> Turns | None:
        """The turns with a fact's texts; None where one of them has no such variant."""
        texts = [_filled(text, values) for _, text in self.turns]
        if None in texts:
            return None
        return tuple((role, text or "") for (role, _), text in zip(self.turns, texts, strict=True))


def _filled(template: str, values: Mapping[str, str]) -> str | None:
    missing = False

    def field(match: re.Match[str]) -> str:
        nonlocal missing
        name, variant = match.groups()
        text: str | None = values[name]
        if variant is not None and text is not None:
            text = VARIANTS[variant](text, values.get("s"))
        missing |= text is None
        return text or ""

    result = _FIELD.sub(field, template)
    return None if missing else result
