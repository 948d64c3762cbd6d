"""Which part of a prompt is the question: chat turns, templates, few-shot contexts."""

from __future__ import annotations

import re
from typing import Any

_SENTINEL = "§question§"
# "A:", "Answer:", "Output:", "Assistant:" on a line of its own, or before a question ("Q: ...").
_CUE = re.compile(r"^\s*[A-Z][a-z]{0,11}\s*:\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


class QueryReader:
    """Finds the question in what an LLM is given.

    Args:
        tokenizer: of the LLM; its chat template, if any, tells how a user turn is framed.
        prompt_template: the template which fitting put around queries, one `{}`.
    """

    def __init__(self, tokenizer: Any, prompt_template: str = "{}") -> None:
        self.template = prompt_template
        self._frames = [frame for frame in (_chat_frame(tokenizer),) if frame]
        before, _, after = prompt_template.partition("{}")
        if before or after:
            self._frames.append((before, after))

    def wrap(self, query: str) -> str:
        """What the LLM sees of a bare query."""
        return self.template.replace("{}", query)

    def readings(self, prompt: str) -> list[str]:
        """The possible questions in `prompt`, the most literal first, without repetition.

        The text itself (taken out of its chat turn or template), its last line, and that line's
        last sentence: a fact may be asked at the end of a long few-shot context.
        """
        text = self._unframe(prompt)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        while len(lines) > 1 and _CUE.sub("", lines[-1]) == "":
            lines.pop()
        last = _CUE.sub("", lines[-1]).strip() if lines else text
        sentence = _SENTENCE_END.split(last)[-1].strip()
        return list(dict.fromkeys(part for part in (text.strip(), last, sentence) if part))

    def _unframe(self, prompt: str) -> str:
        for before, after in self._frames:
            end = prompt.rstrip()
            tail = after.rstrip()
            if not (before and before in prompt) or not end.endswith(tail):
                continue
            return prompt[prompt.rindex(before) + len(before) : len(end) - len(tail)]
        return prompt


def _chat_frame(tokenizer: Any) -> tuple[str, str] | None:
    """What the chat template puts before and after the last user turn."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": _SENTINEL}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = text.partition(_SENTINEL)
    if not found:
        return None
    # What opens the first turn may hold a system prompt: the last line of it marks the turn.
    marker = before.splitlines()[-1] if before.strip() else before
    opening = before[before.rindex(marker) :] if marker else before
    return (opening, after) if opening else None
