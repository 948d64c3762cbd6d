"""Answers to many requests at once, by continuous batching, which outlive a step that fails."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from meg_editor.lm.answers import end_tokens
from meg_editor.lm.context import context_length
from meg_editor.lm.paged import PagedManager
from meg_editor.lm.sampling import Chooser, Sampling, TokenLogprob
from meg_editor.model.meg_model import MeGModel
from meg_editor.serving.errors import api_error
from meg_editor.serving.texts import Detokenizer, Stops

_LOG = logging.getLogger(__name__)
_WATCH = 1.0  # seconds after which the engine is looked at
_STOPPING = 30.0  # seconds for an engine to come to its end
_ATTEMPTS = 5  # at one answer


@dataclass(frozen=True)
class GenerationRequest:
    """One answer that is asked for.

    Attributes:
        ids: T token ids of the prompt.
        neuron: (P,) of the edit asked for; None: the unedited model answers.
        max_tokens: of the answer.
        stops: strings before which it ends.
        stripped: without blanks at its beginning, as chats have it.
    """

    ids: Sequence[int]
    neuron: Tensor | None
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    stripped: bool = False


@dataclass(frozen=True)
class Delta:
    """A part of an answer.

    Attributes:
        text: what it adds.
        tokens: those behind it, or behind text that is held back; not the one that ends the answer.
        count: of new tokens, with that one.
        finish: "stop" or "length" at the end; None before.
    """

    text: str
    tokens: list[TokenLogprob] = field(default_factory=list)
    count: int = 0
    finish: str | None = None


class EngineError(RuntimeError):
    """The engine came to its end while a request was under way."""


class Suspects:
    """Requests which were under way when a step failed.

    They are tried again one at a time, and no other request begins, until the one that is tried
    has done a step; so the one which makes steps fail does so alone.
    """

    def __init__(self) -> None:
        self._calm = asyncio.Event()
        self._calm.set()
        self._one, self._count = asyncio.Lock(), 0

    async def none(self) -> None:
        """Wait until there is none."""
        await self._calm.wait()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Suspicion]:
        """Within the block, until `cleared`, no other suspect is tried and nobody begins."""
        self._count += 1
        self._calm.clear()
        suspicion = Suspicion(self)
        try:
            await self._one.acquire()
            suspicion.holds = True
            yield suspicion
        finally:
            suspicion.cleared()

    def _leave(self, holds: bool) -> None:
        if holds:
            self._one.release()
        self._count -= 1
        if not self._count:
            self._calm.set()


class Suspicion:
    """That one request makes steps fail."""

    def __init__(self, suspects: Suspects) -> None:
        self._suspects: Suspects | None = suspects
        self.holds = False

    @property
    def stands(self) -> bool:
        """Whether it was not cleared."""
        return self._suspects is not None

    def cleared(self) -> None:
        """The request did a step, or is over."""
        if self._suspects is not None:
            suspects, self._suspects = self._suspects, None
            suspects._leave(self.holds)


class Engine:
    """Answers requests together, each as if it were alone.

    Where a step fails (out of memory …), the engine starts anew, and the requests which were under
    way go on from their last token; only the one which makes it fail is lost.

    Args:
        model: its base answers; a request names its neuron.
    """

    def __init__(self, model: MeGModel) -> None:
        self._model = model
        self._ends = sorted(end_tokens(model.base, model._tokenizer))
        self._manager = self._new_manager()
        self._numbers = itertools.count()
        self._suspects, self._reviving = Suspects(), asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self.running = 0

    @property
    def capacity(self) -> int:
        """Most tokens of a prompt with its answer."""
        config = self._manager.continuous_batching_config
        cache = config.page_size * (config.num_blocks or 0)
        context = context_length(self._model.base)
        return min(number for number in (cache, context) if number)

    def start(self) -> None:
        """Start the thread that answers, and the task that looks after it."""
        self._manager.start()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Finish what is under way, and stop."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.to_thread(self._manager.stop, timeout=_STOPPING)

    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._manager.is_running()

    async def answer(self, request: GenerationRequest) -> AsyncGenerator[Delta]:
        """The answer, part by part; the last one says why it ends.

        Raises:
            ApiError: it cannot be given.
        """
        detokenizer, stops = Detokenizer(self._model._tokenizer), Stops(request.stops)
        begun = not request.stripped
        self.running += 1
        try:
            async with aclosing(self._tokens(request)) as tokens:
                async for new, over in tokens:
                    seen = [each for each in new if each.token not in self._ends]
                    piece = detokenizer.push([each.token for each in new])
                    piece += detokenizer.rest() if over else ""
                    piece = piece if begun else piece.lstrip()
                    begun = begun or bool(piece)
                    text = stops.push(piece)
                    finish = None
                    if stops.found:
                        finish = "stop"
                    elif over:
                        text += stops.rest()
                        finish = "length" if len(seen) == len(new) else "stop"
                    yield Delta(text, seen, len(new), finish)
                    if finish:
                        return
        finally:
            self.running -= 1

    # ------------------------------------------------------------------ tokens

    async def _tokens(
        self, request: GenerationRequest
    ) -> AsyncGenerator[tuple[list[TokenLogprob], bool]]:
        """Tokens as they come, and whether they are the last."""
        chooser = request.sampling.chooser()
        written: list[int] = []
        await self._suspects.none()
        with suppress(EngineError):
            async with aclosing(self._attempt(request, chooser)) as attempt:
                async for new, over in attempt:
                    written += [each.token for each in new]
                    yield new, over
            return
        for _ in range(_ATTEMPTS):
            async with self._suspects.alone() as suspicion:
                await self._revive()
                rest = replace(
                    request,
                    ids=[*request.ids, *written],
                    max_tokens=request.max_tokens - len(written),
                )
                try:
                    async with aclosing(self._attempt(rest, chooser)) as attempt:
                        async for new, over in attempt:
                            suspicion.cleared()
                            written += [each.token for each in new]
                            yield new, over
                    return
                except EngineError as error:
                    cause: BaseException = error.__cause__ or error
                    if suspicion.stands:  # it was alone
                        break
        raise api_error(cause) from cause

    async def _attempt(
        self, request: GenerationRequest, chooser: Chooser | None
    ) -> AsyncGenerator[tuple[list[TokenLogprob], bool]]:
        manager, name = self._manager, f"answer-{next(self._numbers)}"
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        manager.register_result_handler(name, outputs.put_nowait)
        count, over = 0, False
        try:
            accepted = manager.add_request(
                list(request.ids),
                name,
                request.max_tokens,
                streaming=True,
                eos_token_id=self._ends,
                neuron=request.neuron,
                chooser=chooser,
            )
            if accepted is None:
                raise EngineError("the engine takes no requests") from self._cause(manager)
            while not over:
                output = await self._next(manager, outputs)
                if output.error is not None:
                    over = True
                    raise EngineError(output.error) from self._cause(manager)
                over = output.is_finished()
                tokens = output.generated_tokens[count:]
                count += len(tokens)
                if chooser is None:
                    yield [TokenLogprob(token) for token in tokens], over
                else:
                    yield output.chosen[count - len(tokens) : count], over
        finally:
            if not over:
                manager.cancel_request(name)

    async def _next(self, manager: PagedManager, outputs: asyncio.Queue[Any]) -> Any:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH):
                    return await outputs.get()
            if not manager.is_running() and outputs.empty():
                raise EngineError("the engine stopped") from self._cause(manager)

    # ------------------------------------------------------------------ the manager

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            if not self.is_alive():
                try:
                    await self._revive()
                except Exception:  # it tries again: nobody else would
                    _LOG.exception("the engine could not be started anew")

    async def _revive(self) -> None:
        async with self._reviving:
            former = self._manager
            accepts = former.background_thread_status.can_accept_new_requests() is None
            if accepts and former.is_running():
                return
            await asyncio.to_thread(former.stop, timeout=_STOPPING)
            self._manager = self._new_manager()
            self._manager.start()

    def _new_manager(self) -> PagedManager:
        greedy: Any = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=self._ends, pad_token_id=0
        )
        return PagedManager(self._model.base, self._model.hook, greedy, keeps_results=False)

    @staticmethod
    def _cause(manager: PagedManager) -> BaseException | None:
        return manager.background_thread_status.fatal_error
