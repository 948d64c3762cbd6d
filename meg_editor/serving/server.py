"""What a server holds, and what all its routes need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request

from meg_editor.lm.chat import as_dialogue
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.model.cache_routing import prompt_text
from meg_editor.model.meg_model import MeGModel
from meg_editor.serving.bodies import Message
from meg_editor.serving.edit_store import EditStore
from meg_editor.serving.engine import Engine
from meg_editor.serving.errors import ApiError
from meg_editor.serving.keys import Keys
from meg_editor.serving.limits import RateLimit
from meg_editor.serving.metrics import Metrics
from meg_editor.serving.routing_queue import RoutingQueue

_LONG = 20_000  # characters, beyond which a text is tokenised in a thread


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        answers: under way at once; further requests get 429.
        body: bytes of a request.
        per_minute: requests of one client, 0 for no limit.
        answer_tokens: of an answer whose request names no limit.
    """

    answers: int = 256
    body: int = 1 << 20
    per_minute: int = 0
    answer_tokens: int = 1024


@dataclass
class Server:
    """A served model with its keys, limits and counts.

    Attributes:
        folder: which the model was loaded from, and changes are written to.
    """

    model: MeGModel
    folder: Path
    keys: Keys
    limits: Limits = Limits()
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.name = self.folder.resolve().name
        self.started = time.time()
        self.routing = RoutingQueue(self.model)
        self.store = EditStore(self.model, self.folder)
        self.rate = RateLimit(self.limits.per_minute)
        self.answers = 0  # under way, or about to be
        self.engine: Engine  # made where there is an event loop

    def start(self) -> None:
        """Start answering, within an event loop."""
        self.engine = Engine(self.model)
        self.engine.start()
        self.routing.start()

    async def close(self) -> None:
        """Finish what is under way."""
        await self.engine.close()
        await self.routing.close()
        await self.store.close()

    # ------------------------------------------------------------------ requests
    # Checks are async since FastAPI has a thread run whatever is not.

    async def api(self, request: Request) -> None:
        """Raises ApiError unless the request may ask, now."""
        self.keys.check_api(request)
        self._check_rate(request)

    async def admin(self, request: Request) -> None:
        """Raises ApiError unless the request may change edits, now."""
        self.keys.check_admin(request)
        self._check_rate(request)

    def _check_rate(self, request: Request) -> None:
        client = request.client.host if request.client else ""
        if wait := self.rate.take(client):
            raise ApiError(
                429,
                f"expected at most {self.limits.per_minute} requests a minute",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(int(wait) + 1)},
            )

    def reserve(self, answers: int) -> Callable[[], None]:
        """Room for so many answers; gives what frees it again, once.

        Raises:
            ApiError: 429 where they are too many now; 400 where they always are.
        """
        limit = self.limits.answers
        if answers > limit:
            raise ApiError(400, f"expected at most {limit} answers at once, got {answers}")
        if self.answers + answers > limit:
            raise ApiError(
                429,
                f"{self.answers} answers are under way, of at most {limit}",
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )
        self.answers += answers
        reserved = [answers]

        def free() -> None:
            self.answers -= reserved.pop() if reserved else 0

        return free

    def is_base(self, model: str | None) -> bool:
        """Whether a request names the unedited model.

        Raises:
            ApiError: 404, it names no model of this server.
        """
        if model in (None, self.name):
            return False
        if model == self.base_name:
            return True
        raise ApiError(
            404,
            f"there is no model {model!r}; there are {self.name!r} and {self.base_name!r}",
            param="model",
            code="model_not_found",
        )

    @property
    def base_name(self) -> str:
        """Name of the unedited model."""
        return f"{self.name}:base"

    # ------------------------------------------------------------------ prompts

    async def chat_ids(self, messages: list[Message]) -> list[int]:
        """Token ids of a chat, up to where the answer begins.

        Raises:
            ApiError: 400, the model's chat template has no place for such turns.
        """
        if sum(map(_length, messages)) < _LONG:
            return self._chat_ids(messages)
        return await asyncio.to_thread(self._chat_ids, messages)

    async def prompt_ids(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a prompt, which may be such ids already.

        Raises:
            ApiError: 400, an empty prompt or ids that the model does not have.
        """
        if isinstance(prompt, str) and not prompt.strip():
            ids = []
        elif isinstance(prompt, str):
            long = len(prompt) >= _LONG
            ids = (
                await asyncio.to_thread(self._text_ids, prompt) if long else self._text_ids(prompt)
            )
        else:
            ids = prompt
            size = self.model.base.get_input_embeddings().weight.shape[0]
            if any(not 0 <= token < size for token in ids):
                raise ApiError(400, f"expected token ids from 0 to {size - 1}", param="prompt")
        if not ids:
            raise ApiError(400, "expected a prompt, got an empty one", param="prompt")
        return ids

    def text_of(self, ids: list[int]) -> str:
        """The text of a prompt, as the router reads it."""
        return prompt_text(self.model._tokenizer, ids)

    def max_tokens(self, ids: list[int], asked: int | None, param: str) -> int:
        """Most tokens of the answer to a prompt, where so many or None are asked for.

        Raises:
            ApiError: 400, prompt and answer are longer than the model's context.
        """
        capacity = self.engine.capacity
        room = capacity - len(ids)
        if room < (asked or 1):
            answer = f" and {asked} of answer" if asked else ""
            raise ApiError(
                400,
                f"expected at most {capacity} tokens, got {len(ids)} of prompt{answer}",
                param=param,
                code="context_length_exceeded",
            )
        return min(room, asked or self.limits.answer_tokens)

    def _chat_ids(self, messages: list[Message]) -> list[int]:
        tokenizer, turns = self.model._tokenizer, [message.turn for message in messages]
        if not tokenizer.chat_template:
            text = as_dialogue(*((turn["role"], turn["content"]) for turn in turns))
            return self._text_ids(text)
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # of jinja2, or raised by the template in any way it likes
            raise ApiError(
                400, f"the model's chat template refuses these turns: {error}", param="messages"
            ) from None
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text_ids(self, text: str) -> list[int]:
        return prompt_tokens(self.model._tokenizer, [text])[0]


def _length(message: Message) -> int:
    return len(message.turn["content"])
