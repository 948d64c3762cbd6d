"""Limits on what one client may send."""

from __future__ import annotations

import time
from collections import OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meg_editor.serving.errors import ApiError

_CLIENTS = 10_000  # whose rate is remembered


class SizeLimit:
    """Refuses bodies of more bytes, announced or not, with 413.

    FastAPI's own `max_body_size` answers in plain text.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = ApiError(
            413, f"expected a body of at most {self.max_bytes:,} bytes", code="too_large"
        ).response
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            await refusal(scope, receive, send)
            return
        size, started, refused = 0, False, False

        async def counted() -> Message:
            nonlocal size, refused
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def noting(message: Message) -> None:
            nonlocal started
            if not refused:
                started = True
                await send(message)

        try:
            await self.app(scope, counted, noting)
        finally:
            if refused and not started:
                await refusal(scope, receive, send)


class RateLimit:
    """A bucket of requests for each client, filled again at a steady rate.

    Args:
        per_minute: requests, and as many at once; 0: no limit.

    Example:
        >>> limit = RateLimit(2)
        >>> limit.take("a"), limit.take("a"), limit.take("a") > 0, limit.take("b")
        (0.0, 0.0, True, 0.0)
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, since

    def take(self, client: str) -> float:
        """0, or the seconds after which the client may ask again."""
        if not self.per_minute:
            return 0.0
        now, rate = time.monotonic(), self.per_minute / 60
        left, since = self._buckets.pop(client, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - since) * rate)
        allowed = left >= 1
        self._buckets[client] = (left - allowed, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / rate
