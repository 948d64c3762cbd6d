"""Answers to many requests at once, by continuous batching, which outlive a step that fails."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from meg_editor.lm.in_effect import nothing_in_effect
from meg_editor.lm.paged import PagedManager
from meg_editor.lm.sampling import Chooser, Sampling, TokenLogprob
from meg_editor.model.meg_model import MeGModel
from meg_editor.serving.errors import api_error
from meg_editor.serving.texts import Detokenizer, Stops

_WATCH = 1.0  # seconds without a token after which the engine is looked at
_RESTART = 30.0  # seconds for an engine that failed to come to its end


@dataclass(frozen=True)
class Asked:
    """One answer that is asked for.

    Attributes:
        ids: T token ids of the prompt.
        neuron: (P,) of the edit asked for; None: the unedited model answers.
        limit: most tokens of the answer.
        stops: strings before which it ends.
        streamed: whether it is wanted piece by piece, rather than whole.
        stripped: without blanks at its beginning, as chats have it.
    """

    ids: Sequence[int]
    neuron: Tensor | None
    limit: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    streamed: bool = False
    stripped: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: what it adds.
        tokens: those behind it, or behind text that is held back.
        finish: "stop" or "length" at the end; None before.
    """

    text: str
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None


class EngineError(RuntimeError):
    """The engine came to its end while a request was under way."""


class Engine:
    """Answers requests together, each as if it were alone.

    Where a step fails (out of memory …), the engine starts anew. The requests which were under way
    go on from their last token, one at a time, so that only the one which makes it fail is lost.

    Args:
        model: its base answers; a request names its neuron.
    """

    def __init__(self, model: MeGModel) -> None:
        self._model = model
        self._ends = _end_tokens(model)
        self._manager = self._new_manager()
        self._numbers = itertools.count()
        self._calm = asyncio.Event()  # no request is suspected of making the engine fail
        self._calm.set()
        self._suspects = 0
        self._one_suspect, self._reviving = asyncio.Lock(), asyncio.Lock()
        self.running = 0

    @property
    def capacity(self) -> int:
        """Most tokens of a prompt with its answer."""
        config = self._manager.continuous_batching_config
        cache = config.page_size * (config.num_blocks or 0)
        text = self._model.base.config.get_text_config()
        context = getattr(text, "max_position_embeddings", None)
        return min(number for number in (cache, context) if number)

    def start(self) -> None:
        """Start the thread that answers."""
        self._manager.start()

    async def close(self) -> None:
        """Finish what is under way, and stop."""
        await asyncio.to_thread(self._manager.stop, timeout=_RESTART)

    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._manager.is_running()

    async def answer(self, asked: Asked) -> AsyncGenerator[Piece]:
        """The answer, piece by piece; the last one says why it ends.

        Raises:
            ApiError: it cannot be given.
        """
        detokenizer, stops = Detokenizer(self._model._tokenizer), Stops(asked.stops)
        count, begun = 0, not asked.stripped
        self.running += 1
        try:
            async with aclosing(self._tokens(asked)) as tokens:
                async for new, over in tokens:
                    count += len(new)
                    text = stops.push(detokenizer.push([each.token for each in new]))
                    finish = None
                    if stops.found:
                        finish = "stop"
                    elif over:
                        ended = new and new[-1].token in self._ends
                        finish = "stop" if ended or count < asked.limit else "length"
                        text += stops.rest()
                    text = text if begun else text.lstrip()
                    begun = begun or bool(text)
                    yield Piece(text, new, finish)
                    if finish:
                        return
        finally:
            self.running -= 1

    # ------------------------------------------------------------------ tokens

    async def _tokens(self, asked: Asked) -> AsyncGenerator[tuple[list[TokenLogprob], bool]]:
        """Tokens as they come, and whether they are the last."""
        chooser = asked.sampling.chooser()
        written: list[int] = []
        try:
            await self._calm.wait()
            async with aclosing(self._attempt(asked, chooser)) as attempt:
                async for new, over in attempt:
                    written += [each.token for each in new]
                    yield new, over
            return
        except EngineError:
            pass
        self._suspects += 1
        self._calm.clear()
        try:
            async with self._one_suspect:
                await self._revive()
                rest = replace(asked, ids=[*asked.ids, *written], limit=asked.limit - len(written))
                async with aclosing(self._attempt(rest, chooser)) as attempt:
                    async for new, over in attempt:
                        yield new, over
        except EngineError as error:
            await self._revive()
            raise api_error(error.__cause__ or error) from error
        finally:
            self._suspects -= 1
            if not self._suspects:
                self._calm.set()

    async def _attempt(
        self, asked: Asked, chooser: Chooser | None
    ) -> AsyncGenerator[tuple[list[TokenLogprob], bool]]:
        manager, name = self._manager, f"answer-{next(self._numbers)}"
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        manager.register_result_handler(name, outputs.put_nowait)
        given, over = 0, False
        try:
            accepted = manager.add_request(
                list(asked.ids),
                name,
                asked.limit,
                streaming=asked.streamed or bool(asked.stops),
                eos_token_id=self._ends,
                neuron=asked.neuron,
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
                tokens = output.generated_tokens[given:]
                chosen = output.chosen[given:] if chooser else []
                given += len(tokens)
                yield chosen or [TokenLogprob(token, 0.0) for token in tokens], over
        finally:
            if not over:
                manager.cancel_request(name)

    async def _next(self, manager: PagedManager, outputs: asyncio.Queue[Any]) -> Any:
        while True:
            with suppress(TimeoutError):
                return await asyncio.wait_for(outputs.get(), _WATCH)
            if not manager.is_running() and outputs.empty():
                raise EngineError("the engine stopped") from self._cause(manager)

    # ------------------------------------------------------------------ the manager

    async def _revive(self) -> None:
        async with self._reviving:
            former = self._manager
            if former.background_thread_status.can_accept_new_requests() is None:
                return
            await asyncio.to_thread(former.stop, timeout=_RESTART)
            self._manager = self._new_manager()
            self._manager.start()

    def _new_manager(self) -> PagedManager:
        greedy: Any = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=self._ends, pad_token_id=0
        )
        return PagedManager(self._model.base, self._model.hook, greedy)

    @staticmethod
    def _cause(manager: PagedManager) -> BaseException | None:
        return manager.background_thread_status.fatal_error


@torch.no_grad()
def check_batching(model: MeGModel) -> None:
    """Check that transformers' continuous batching answers as the model does alone.

    Raises:
        ValueError: it does not, for this architecture (recurrent layers, latent attention …).
    """
    prompts = [[token + n for token in range(3, 9 + n)] for n in range(3)]
    plain = {"do_sample": False, "pad_token_id": 0, "eos_token_id": -1, "max_new_tokens": 4}
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.base.device)
        with nothing_in_effect():
            out = model.base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **plain)
        expected.append(out[0, len(prompt) :].tolist())
    try:
        options: Any = GenerationConfig(**plain)  # type: ignore[no-untyped-call]
        found = PagedManager(model.base, model.hook, options)
        found.start()
        for n, prompt in enumerate(prompts):
            found.add_request(prompt, str(n), max_new_tokens=4, eos_token_id=-1)
        outputs = [found.get_result(timeout=_RESTART) for _ in prompts]
        shared = found.shares_model
        found.stop(hard_stop=True)
        answers = {output.request_id: output.generated_tokens for output in outputs if output}
    except Exception:
        answers, shared = {}, True
    same = sum(
        token == other
        for n, tokens in enumerate(expected)
        for token, other in zip(tokens, answers.get(str(n), []), strict=False)
    )
    if same < 6:  # of 12: in half precision a tie may fall otherwise
        kind = type(model.base).__name__
        raise ValueError(
            f"transformers' continuous batching does not answer as {kind} does alone: this model "
            "cannot be served; use it from Python"
        )
    if not shared:
        raise ValueError(
            "continuous batching replaces this model's attention, so that edits cannot be learned "
            "beside it: load it with attn_implementation='sdpa', by transformers 5.20 or later"
        )


def _end_tokens(model: MeGModel) -> list[int]:
    """Token ids that end an answer."""
    ends = getattr(model.base.generation_config, "eos_token_id", None)
    listed = list(ends) if isinstance(ends, list | tuple) else [ends]
    return sorted(
        {token for token in (*listed, model._tokenizer.eos_token_id) if token is not None}
    )
