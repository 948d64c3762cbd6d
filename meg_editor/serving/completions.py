"""/v1/chat/completions, /v1/completions and /v1/models, as OpenAI has them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse, StreamingResponse

from meg_editor.lm.sampling import TokenLogprob
from meg_editor.serving.bodies import Chat, Prompt
from meg_editor.serving.engine import Asked, Piece
from meg_editor.serving.errors import ApiError, api_error
from meg_editor.serving.server import Server

Part = dict[str, Any]


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
    async def chat(body: Chat) -> Response:
        base = server.is_base(body.model)
        ids = await server.chat_ids(body.messages)
        asked = await _asked(server, body, [ids], body.limit, body.top, base)
        return await _respond(server, body, asked, _ChatShape(server, body))

    @router.post("/completions")
    async def completions(body: Prompt) -> Response:
        base = server.is_base(body.model)
        if not body.prompts:
            raise ApiError(400, "expected a prompt, got none", param="prompt")
        server.check_room(len(body.prompts) * body.n)
        rows = [await server.prompt_ids(prompt) for prompt in body.prompts]
        asked = await _asked(server, body, rows, body.max_tokens or 16, body.logprobs, base)
        return await _respond(server, body, asked, _TextShape(server, body))

    return router


def _model(server: Server, base: bool) -> Part:
    name = server.base_name if base else server.name
    created = int(server.started)
    return {"id": name, "object": "model", "created": created, "owned_by": "meg_editor"}


async def _asked(
    server: Server,
    body: Chat | Prompt,
    rows: Sequence[list[int]],
    wanted: int | None,
    logprobs: int | None,
    base: bool,
) -> list[Asked]:
    """What is asked for: n answers to each of B prompts."""
    server.check_room(len(rows) * body.n)
    limits = [server.limit(ids, wanted) for ids in rows]
    try:
        sampling = [body.sampling(number, logprobs) for number in range(body.n)]
        neurons = await asyncio.gather(*(_neuron(server, ids, base) for ids in rows))
    except Exception as error:
        raise api_error(error) from error
    server.metrics.tokens.labels("prompt").inc(sum(map(len, rows)))
    return [
        Asked(ids, neuron, limit, each, tuple(body.stop), body.stream, isinstance(body, Chat))
        for ids, neuron, limit in zip(rows, neurons, limits, strict=True)
        for each in sampling
    ]


async def _neuron(server: Server, ids: list[int], base: bool) -> Any:
    counts = server.metrics.answers
    if base:
        counts.labels("base").inc()
        return None
    routed = await server.routes.route(server.text_of(ids))
    counts.labels("left_alone" if routed.neuron is None else "edited").inc()
    return routed.neuron


# ---------------------------------------------------------------------- answers


async def _respond(
    server: Server, body: Chat | Prompt, asked: Sequence[Asked], shape: _Shape
) -> Response:
    if not body.stream:
        whole = await asyncio.gather(*(_whole(server, each) for each in asked))
        choices = [shape.choice(row, answer) for row, answer in enumerate(whole)]
        return JSONResponse(
            shape.frame(choices, usage=_usage(asked, body.n, [len(a.tokens) for a in whole]))
        )
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    events = _events(server, asked, shape, body.n, wants_usage)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


@dataclass
class _Answer:
    """A whole answer."""

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish = piece.finish


async def _whole(server: Server, asked: Asked) -> _Answer:
    answer = _Answer()
    async with aclosing(_counted(server, asked)) as pieces:
        async for piece in pieces:
            answer.add(piece)
    return answer


async def _counted(server: Server, asked: Asked) -> AsyncGenerator[Piece]:
    start, first = time.perf_counter(), True
    async with aclosing(server.engine.answer(asked)) as pieces:
        async for piece in pieces:
            if first:
                server.metrics.first.observe(time.perf_counter() - start)
                first = False
            server.metrics.tokens.labels("answer").inc(len(piece.tokens))
            yield piece


async def _events(
    server: Server, asked: Sequence[Asked], shape: _Shape, each: int, wants_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of the answers, as their pieces come."""
    pieces: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()

    async def follow(row: int) -> None:
        try:
            async with aclosing(_counted(server, asked[row])) as found:
                async for piece in found:
                    pieces.put_nowait((row, piece))
        except Exception as error:
            pieces.put_nowait((row, error))

    tasks = [asyncio.create_task(follow(row)) for row in range(len(asked))]
    counts = [0] * len(asked)
    try:
        for start in shape.starts(len(asked)):
            yield _event(shape.frame([start]))
        open_answers = len(asked)
        while open_answers:
            row, piece = await pieces.get()
            if isinstance(piece, BaseException):
                yield _event(api_error(piece).body)
                return
            counts[row] += len(piece.tokens)
            open_answers -= piece.finish is not None
            if piece.text or piece.finish or asked[row].sampling.logprobs is not None:
                yield _event(shape.frame([shape.delta(row, piece)]))
        if wants_usage:
            yield _event(shape.frame([], usage=_usage(asked, each, counts)))
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()


def _event(data: Part) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _usage(asked: Sequence[Asked], each: int, written: Sequence[int]) -> dict[str, int]:
    """Tokens; a prompt with several answers counts once."""
    read = sum(len(one.ids) for one in asked[::each])
    total = sum(written)
    return {"prompt_tokens": read, "completion_tokens": total, "total_tokens": read + total}


# ---------------------------------------------------------------------- shapes


class _Shape:
    """How answers look, whole and in pieces."""

    prefix, whole, piece = "", "", ""

    def __init__(self, server: Server, body: Chat | Prompt) -> None:
        name = server.base_name if server.is_base(body.model) else server.name
        self._decode: Callable[[int], str] = lambda token: server.model._tokenizer.decode([token])
        kind = self.piece if body.stream else self.whole
        self._frame = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": name,
        }

    def frame(self, choices: list[Part], usage: Part | None = None) -> Part:
        """The whole object around choices."""
        return {**self._frame, "choices": choices, **({"usage": usage} if usage else {})}

    def starts(self, count: int) -> list[Part]:
        """What comes before the first pieces."""
        return []

    def choice(self, row: int, answer: _Answer) -> Part:
        """A whole answer."""
        raise NotImplementedError

    def delta(self, row: int, piece: Piece) -> Part:
        """A piece of an answer."""
        raise NotImplementedError


class _ChatShape(_Shape):
    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, server: Server, body: Chat) -> None:
        super().__init__(server, body)
        self._logprobs = body.top is not None

    def starts(self, count: int) -> list[Part]:
        start = {"role": "assistant", "content": ""}
        return [{"index": row, "delta": start, "finish_reason": None} for row in range(count)]

    def choice(self, row: int, answer: _Answer) -> Part:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return self._finished(row, {"message": message}, answer)

    def delta(self, row: int, piece: Piece) -> Part:
        return self._finished(row, {"delta": {"content": piece.text} if piece.text else {}}, piece)

    def _finished(self, row: int, content: Part, part: _Answer | Piece) -> Part:
        logprobs = {"content": [self._logprob(t) for t in part.tokens]} if self._logprobs else None
        return {"index": row, **content, "logprobs": logprobs, "finish_reason": part.finish}

    def _logprob(self, token: TokenLogprob) -> Part:
        top = [self._named(*each) for each in token.top]
        return {**self._named(token.token, token.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> Part:
        text = self._decode(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class _TextShape(_Shape):
    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def __init__(self, server: Server, body: Prompt) -> None:
        super().__init__(server, body)
        self._logprobs = body.logprobs is not None

    def choice(self, row: int, answer: _Answer) -> Part:
        return self._of(row, answer)

    def delta(self, row: int, piece: Piece) -> Part:
        return self._of(row, piece)

    def _of(self, row: int, part: _Answer | Piece) -> Part:
        logprobs = self._listed(part.tokens) if self._logprobs else None
        return {"index": row, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish}

    def _listed(self, tokens: Sequence[TokenLogprob]) -> Part:
        texts = [self._decode(token.token) for token in tokens]
        starts = [sum(map(len, texts[:n])) for n in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._decode(i): p for i, p in token.top} for token in tokens],
            "text_offset": starts,
        }
