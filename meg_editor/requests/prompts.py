"""The question span of a prompt: chat turns, prompt templates, few-shot contexts."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any, Protocol

_SENTINEL = "§question§"
# "A:", "Answer:", "Output:", "Assistant:" on a line of its own, or before a question ("Q: ...").
_CUE = re.compile(r"^\s*[A-Z][a-z]{0,11}\s*:\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


class ChatTokenizer(Protocol):
    """A tokenizer which may have a chat template (`meg_editor.lm.protocols.Tokenizer` is one)."""

    bos_token: str | None

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


class PromptReader:
    """Puts queries into the prompt template, and extracts candidate question spans from prompts.

    Args:
        tokenizer: of the LLM; its chat template, if any, gives the text around a user turn.
        prompt_template: the template around every query, with one `{}`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> reader = PromptReader(tokenizer, "Question: {} Answer:")
        >>> reader.wrap("Who wrote Emma?")
        'Question: Who wrote Emma? Answer:'
        >>> reader.candidates("Q: Who wrote Ulysses?\\nA: Joyce\\nQ: Who wrote Emma?\\nA:")[1:]
        ['Who wrote Emma?']
    """

    def __init__(self, tokenizer: ChatTokenizer, prompt_template: str = "{}") -> None:
        self.template = prompt_template
        before, _, after = prompt_template.partition("{}")
        # Prompts are stripped, so their ends are compared without white space.
        stripped = ((b.lstrip(), a.rstrip()) for b, a in (_chat_frame(tokenizer), (before, after)))
        self._frames = [frame for frame in stripped if any(frame)]

    def wrap(self, query: str) -> str:
        """The prompt of a bare query: the query in the prompt template."""
        return self.template.replace("{}", query)

    def candidates(self, prompt: str) -> list[str]:
        """Candidate question spans of `prompt`, longest first, without duplicates; at least one.

        They are the text (without its chat turn or prompt template), its last line, and the last
        sentence of that line: the question may stand at the end of a few-shot context.
        """
        text = self._unframe(prompt)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        while len(lines) > 1 and _CUE.sub("", lines[-1]) == "":
            lines.pop()
        last = _CUE.sub("", lines[-1]).strip() if lines else text
        sentence = _SENTENCE_END.split(last)[-1].strip()
        spans = dict.fromkeys(part for part in (text.strip(), last, sentence) if part)
        return list(spans) or [prompt.strip()]

    def _unframe(self, prompt: str) -> str:
        text = prompt.rstrip()
        for before, after in self._frames:
            if before in text and text.endswith(after):
                start = text.rindex(before) + len(before) if before else 0
                return text[start : len(text) - len(after)]
        return prompt


def _chat_frame(tokenizer: ChatTokenizer) -> tuple[str, str]:
    """The text which the chat template puts before and after every user turn.

    BOS and a default system prompt come before the first turn only, so the frame is what a first
    and a later turn have in common. Without a template: ("", "").
    """
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    frames = []
    for roles in (["user"], ["user", "assistant", "user"]):
        turns = [{"role": role, "content": _SENTINEL} for role in roles]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, sentinel, after = text.rpartition(_SENTINEL)
        if not sentinel:
            return "", ""
        frames.append((before.removeprefix(tokenizer.bos_token or ""), after))
    (first, after), (later, _) = frames
    return _common_end(first, later), after


def _common_end(first: str, second: str) -> str:
    pairs = zip(reversed(first), reversed(second), strict=False)
    same = takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(one for one, _ in same)[::-1]
