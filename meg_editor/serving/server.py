"""What a server holds, and what all its routes need."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fastapi import Request

from meg_editor.lm.chat import as_dialogue
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.model.cache_routing import prompt_texts
from meg_editor.model.meg_model import MeGModel
from meg_editor.serving.bodies import Message
from meg_editor.serving.engine import Engine
from meg_editor.serving.errors import ApiError
from meg_editor.serving.keeper import Keeper
from meg_editor.serving.keys import Keys
from meg_editor.serving.limits import RateLimit
from meg_editor.serving.metrics import Metrics
from meg_editor.serving.routes import Routes

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
        self.routes = Routes(self.model)
        self.keeper = Keeper(self.model, self.folder)
        self.rate = RateLimit(self.limits.per_minute)
        self.engine: Engine  # made where there is an event loop

    def start(self) -> None:
        """Start answering, within an event loop."""
        self.engine = Engine(self.model)
        self.engine.start()
        self.routes.start()

    async def close(self) -> None:
        """Finish what is under way."""
        await self.engine.close()
        await self.routes.close()
        await self.keeper.close()

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

    def check_room(self, answers: int) -> None:
        """Raises ApiError 429 where so many more answers at once are too many."""
        if self.engine.running + answers > self.limits.answers:
            raise ApiError(
                429,
                f"{self.engine.running} answers are under way, of at most {self.limits.answers}",
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )

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
        return prompt_texts(self.model._tokenizer, torch.tensor([ids]), None)[0]

    def limit(self, ids: list[int], wanted: int | None) -> int:
        """Most tokens of the answer to a prompt.

        Raises:
            ApiError: 400, prompt and answer are longer than the model's context.
        """
        capacity = self.engine.capacity
        room = capacity - len(ids)
        if room < max(wanted or 1, 1):
            asked = f" and {wanted} tokens of answer" if wanted else ""
            raise ApiError(
                400,
                f"expected at most {capacity} tokens, got {len(ids)} of prompt{asked}",
                param="messages",
                code="context_length_exceeded",
            )
        return min(room, wanted or self.limits.answer_tokens)

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
