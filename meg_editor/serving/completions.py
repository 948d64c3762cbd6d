"""/v1/chat/completions, /v1/completions and /v1/models, as OpenAI has them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from meg_editor.serving.bodies import Chat, Prompt
from meg_editor.serving.engine import Delta, GenerationRequest
from meg_editor.serving.errors import ApiError, api_error
from meg_editor.serving.formats import Answer, ChatFormat, Format, Part, TextFormat
from meg_editor.serving.server import Server

_LOOK = 0.5  # seconds between two looks whether the client is still there
_LEGACY_TOKENS = 16  # of an answer of /v1/completions, as OpenAI has it


def completion_routes(server: Server) -> APIRouter:
    """The routes by which a model is asked."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(server.api)])

    @router.get("/models")
    async def models() -> Part:
        return {"object": "list", "data": [_model(server, base) for base in (False, True)]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> Part:
        return _model(server, server.is_base(name))

    @router.post("/chat/completions")
    async def chat(body: Chat, request: Request) -> Response:
        async def requests() -> list[GenerationRequest]:
            rows = [await server.chat_ids(body.messages)]
            return await _requests(server, body, rows, body.limit, body.top)

        return await _respond(server, body, 1, request, requests, ChatFormat)

    @router.post("/completions")
    async def completions(body: Prompt, request: Request) -> Response:
        if not body.prompts:
            raise ApiError(400, "expected a prompt, got none", param="prompt")

        async def requests() -> list[GenerationRequest]:
            rows = [await server.prompt_ids(prompt) for prompt in body.prompts]
            return await _requests(server, body, rows, body.max_tokens, body.logprobs)

        return await _respond(server, body, len(body.prompts), request, requests, TextFormat)

    return router


def _model(server: Server, base: bool) -> Part:
    name = server.base_name if base else server.name
    created = int(server.started)
    return {"id": name, "object": "model", "created": created, "owned_by": "meg_editor"}


async def _requests(
    server: Server,
    body: Chat | Prompt,
    rows: Sequence[list[int]],
    max_tokens: int | None,
    logprobs: int | None,
) -> list[GenerationRequest]:
    """n answers to each of B prompts."""
    chat = isinstance(body, Chat)
    param = "messages" if chat else "prompt"
    limits = [server.max_tokens(ids, max_tokens, param) for ids in rows]
    if not (chat or max_tokens):
        limits = [min(limit, _LEGACY_TOKENS) for limit in limits]
    sampling = [body.sampling(number, logprobs) for number in range(body.n)]
    base = server.is_base(body.model)
    neurons = await asyncio.gather(*(_neuron(server, ids, base) for ids in rows))
    server.metrics.tokens.labels("prompt").inc(sum(map(len, rows)))
    return [
        GenerationRequest(ids, neuron, limit, each, tuple(body.stop), chat)
        for ids, neuron, limit in zip(rows, neurons, limits, strict=True)
        for each in sampling
    ]


async def _neuron(server: Server, ids: list[int], base: bool) -> Any:
    counts = server.metrics.prompts
    if base:
        counts.labels("base").inc()
        return None
    neuron = await server.routing.route(server.text_of(ids))
    counts.labels("left_alone" if neuron is None else "edited").inc()
    return neuron


# ---------------------------------------------------------------------- answers


async def _respond(
    server: Server,
    body: Chat | Prompt,
    prompts: int,
    client: Request,
    make_requests: Callable[[], Any],
    format_of: type[Format],
) -> Response:
    """The answers to a number of prompts, whole or in parts."""
    server.is_base(body.model)
    free = server.reserve(prompts * body.n)
    streamed = False
    try:
        requests: list[GenerationRequest] = await make_requests()
        form = format_of(server, body)
        if not body.stream:
            answers = await _while_there(client, [_whole(server, each) for each in requests])
            choices = [form.choice(row, answer) for row, answer in enumerate(answers)]
            usage = _usage(requests, body.n, [answer.count for answer in answers])
            return JSONResponse(form.frame(choices, usage))
        wants_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(server, requests, form, body.n, wants_usage)
        streamed = True
        return _Stream(events, free)
    except Exception as error:
        raise api_error(error) from error
    finally:
        if not streamed:
            free()


class _Stream(StreamingResponse):
    """Server-sent events; at their end, or when the client goes, the room is free again."""

    def __init__(self, events: AsyncIterator[str], free: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._free = free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._free()


async def _while_there(client: Request, answers: Sequence[Any]) -> list[Answer]:
    """What all of `answers` give; none goes on once one fails or the client is gone."""

    async def gone() -> None:
        while not await client.is_disconnected():
            await asyncio.sleep(_LOOK)

    tasks = [asyncio.ensure_future(answer) for answer in answers]
    whole: asyncio.Future[list[Answer]] = asyncio.gather(*tasks)
    leaving = asyncio.create_task(gone())
    try:
        both: set[asyncio.Future[Any]] = {whole, leaving}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            raise ApiError(499, "the client is gone")
        return await whole
    finally:
        for task in (*tasks, leaving):
            task.cancel()
        # Whatever they raise now is nobody's; asyncio logs what no one has looked at.
        await asyncio.gather(*tasks, whole, leaving, return_exceptions=True)


async def _whole(server: Server, request: GenerationRequest) -> Answer:
    answer = Answer()
    async with aclosing(_counted(server, request)) as deltas:
        async for delta in deltas:
            answer.add(delta)
    return answer


async def _counted(server: Server, request: GenerationRequest) -> AsyncGenerator[Delta]:
    start, first = time.perf_counter(), True
    async with aclosing(server.engine.answer(request)) as deltas:
        async for delta in deltas:
            if first:
                server.metrics.first.observe(time.perf_counter() - start)
                first = False
            server.metrics.tokens.labels("answer").inc(delta.count)
            yield delta


async def _events(
    server: Server,
    requests: Sequence[GenerationRequest],
    form: Format,
    each: int,
    wants_usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events of the answers, as their parts come."""
    deltas: asyncio.Queue[tuple[int, Delta | BaseException]] = asyncio.Queue()

    async def follow(row: int) -> None:
        try:
            async with aclosing(_counted(server, requests[row])) as parts:
                async for part in parts:
                    deltas.put_nowait((row, part))
        except Exception as error:
            deltas.put_nowait((row, error))

    tasks = [asyncio.create_task(follow(row)) for row in range(len(requests))]
    counts = [0] * len(requests)
    try:
        for start in form.starts(len(requests)):
            yield _event(form.frame([start]))
        open_answers = len(requests)
        while open_answers:
            row, delta = await deltas.get()
            if isinstance(delta, BaseException):
                yield _event(api_error(delta).body)
                return
            counts[row] += delta.count
            open_answers -= delta.finish is not None
            if delta.text or delta.finish or requests[row].sampling.logprobs is not None:
                yield _event(form.frame([form.delta(row, delta)]))
        if wants_usage:
            yield _event(form.frame([], _usage(requests, each, counts)))
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()


def _event(data: Part) -> str:
    return f"data: {json.dumps(data)}\n\n"  # ASCII: U+2028 would end a line for some clients


def _usage(
    requests: Sequence[GenerationRequest], each: int, written: Sequence[int]
) -> dict[str, int]:
    """Tokens; a prompt with several answers counts once."""
    read = sum(len(request.ids) for request in requests[::each])
    total = sum(written)
    return {"prompt_tokens": read, "completion_tokens": total, "total_tokens": read + total}
