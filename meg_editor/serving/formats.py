"""How answers look in OpenAI's protocol: chats and plain texts, whole and in parts."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from meg_editor.lm.protocols import Tokenizer
from meg_editor.lm.sampling import TokenLogprob
from meg_editor.serving.bodies import Chat, Prompt
from meg_editor.serving.engine import Delta
from meg_editor.serving.server import Server
from meg_editor.serving.texts import BROKEN, token_bytes

Part = dict[str, Any]


@dataclass
class Answer:
    """A whole answer.

    Attributes:
        count: of its tokens, with the one that ends it.
    """

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    count: int = 0
    finish: str | None = None

    def add(self, delta: Delta) -> None:
        """Add a part."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.count += delta.count
        self.finish = delta.finish


class Format:
    """How answers look, whole and in parts."""

    prefix, whole, chunk = "", "", ""

    def __init__(self, server: Server, body: Chat | Prompt) -> None:
        name = server.base_name if server.is_base(body.model) else server.name
        self._tokenizer: Tokenizer = server.model._tokenizer
        kind = self.chunk if body.stream else self.whole
        self._frame = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": name,
        }

    def _decode(self, token: int) -> str:
        return self._tokenizer.decode([token], clean_up_tokenization_spaces=False)

    def _name(self, token: int) -> str:
        """Its text, or its bytes where it is a part of a letter."""
        text = self._decode(token)
        if BROKEN not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes(self._tokenizer, token))

    def frame(self, choices: list[Part], usage: Part | None = None) -> Part:
        """The whole object around choices."""
        return {**self._frame, "choices": choices, **({"usage": usage} if usage else {})}

    def starts(self, count: int) -> list[Part]:
        """What comes before the first parts."""
        return []

    def choice(self, row: int, answer: Answer) -> Part:
        """A whole answer."""
        raise NotImplementedError

    def delta(self, row: int, delta: Delta) -> Part:
        """A part of an answer."""
        raise NotImplementedError


class ChatFormat(Format):
    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, server: Server, body: Chat) -> None:
        super().__init__(server, body)
        self._logprobs = body.top is not None

    def starts(self, count: int) -> list[Part]:
        start = {"role": "assistant", "content": ""}
        return [{"index": row, "delta": start, "finish_reason": None} for row in range(count)]

    def choice(self, row: int, answer: Answer) -> Part:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return self._finished(row, {"message": message}, answer)

    def delta(self, row: int, delta: Delta) -> Part:
        return self._finished(row, {"delta": {"content": delta.text} if delta.text else {}}, delta)

    def _finished(self, row: int, content: Part, part: Answer | Delta) -> Part:
        logprobs = {"content": [self._logprob(t) for t in part.tokens]} if self._logprobs else None
        return {"index": row, **content, "logprobs": logprobs, "finish_reason": part.finish}

    def _logprob(self, token: TokenLogprob) -> Part:
        top = [self._named(*each) for each in token.top]
        return {**self._named(token.token, token.logprob or 0.0), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> Part:
        content = list(token_bytes(self._tokenizer, token))
        return {"token": self._name(token), "logprob": logprob, "bytes": content}


class TextFormat(Format):
    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, server: Server, body: Prompt) -> None:
        super().__init__(server, body)
        self._logprobs = body.logprobs is not None
        self._given: Counter[int] = Counter()  # letters of each answer so far

    def choice(self, row: int, answer: Answer) -> Part:
        return self._of(row, answer)

    def delta(self, row: int, delta: Delta) -> Part:
        return self._of(row, delta)

    def _of(self, row: int, part: Answer | Delta) -> Part:
        logprobs = self._listed(row, part.tokens) if self._logprobs else None
        return {"index": row, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish}

    def _listed(self, row: int, tokens: Sequence[TokenLogprob]) -> Part:
        texts = [self._decode(token.token) for token in tokens]
        *starts, self._given[row] = accumulate(map(len, texts), initial=self._given[row])
        return {
            "tokens": [self._name(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._name(i): p for i, p in token.top} for token in tokens],
            "text_offset": starts,
        }
