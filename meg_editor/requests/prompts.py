"""Which part of a prompt is the question: chat turns, templates, few-shot contexts."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

_SENTINEL = "§question§"
# "A:", "Answer:", "Output:", "Assistant:" on a line of its own, or before a question ("Q: ...").
_CUE = re.compile(r"^\s*[A-Z][a-z]{0,11}\s*:\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


class PromptReader:
    """Finds the question in what an LLM is given.

    Args:
        tokenizer: of the LLM; its chat template, if any, tells how a user turn is framed.
        prompt_template: the template which fitting put around queries, one `{}`.
    """

    def __init__(self, tokenizer: Any, prompt_template: str = "{}") -> None:
        self.template = prompt_template
        before, _, after = prompt_template.partition("{}")
        # Prompts come stripped: what is at their ends is compared without white space.
        stripped = ((b.lstrip(), a.rstrip()) for b, a in (_chat_frame(tokenizer), (before, after)))
        self._frames = [frame for frame in stripped if any(frame)]

    def wrap(self, query: str) -> str:
        """What the LLM sees of a bare query."""
        return self.template.replace("{}", query)

    def candidates(self, prompt: str) -> list[str]:
        """The possible questions in `prompt`, the most literal first, without repetition.

        The text itself (taken out of its chat turn or template), its last line, and that line's
        last sentence: a fact may be asked at the end of a long few-shot context. There is always
        at least one, if only the empty one.
        """
        text = self._unframe(prompt)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        while len(lines) > 1 and _CUE.sub("", lines[-1]) == "":
            lines.pop()
        last = _CUE.sub("", lines[-1]).strip() if lines else text
        sentence = _SENTENCE_END.split(last)[-1].strip()
        readings = dict.fromkeys(part for part in (text.strip(), last, sentence) if part)
        return list(readings) or [prompt.strip()]

    def _unframe(self, prompt: str) -> str:
        text = prompt.rstrip()
        for before, after in self._frames:
            if before in text and text.endswith(after):
                start = text.rindex(before) + len(before) if before else 0
                return text[start : len(text) - len(after)]
        return prompt


def _chat_frame(tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and after every user turn, wherever it stands.

    What a template begins with (BOS, a system prompt of its own) comes before the first turn only,
    so that the frame is what a first and a later turn have in common. Without a template: ("", "").
    """
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    frames = []
    for roles in (["user"], ["user", "assistant", "user"]):
        turns = [{"role": role, "content": _SENTINEL} for role in roles]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, found, after = text.rpartition(_SENTINEL)
        if not found:
            return "", ""
        frames.append((before.removeprefix(tokenizer.bos_token or ""), after))
    (first, after), (later, _) = frames
    return _common_end(first, later), after


def _common_end(first: str, second: str) -> str:
    pairs = zip(reversed(first), reversed(second), strict=False)
    same = takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(one for one, _ in same)[::-1]
