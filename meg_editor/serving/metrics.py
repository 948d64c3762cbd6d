"""What the server counts, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counts of one server.

    Example:
        >>> metrics = Metrics()
        >>> metrics.tokens.labels("answer").inc(3)
        >>> b'meg_editor_tokens_total{kind="answer"} 3.0' in metrics.text()
        True
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "meg_editor_requests", "Requests", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "meg_editor_request_seconds",
            "Seconds to the end of a request",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "meg_editor_first_token_seconds",
            "Seconds to the first piece of an answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "meg_editor_tokens", "Tokens read and written", ("kind",), registry=registry
        )
        self.prompts = Counter(
            "meg_editor_prompts",
            "Prompts: edited, left_alone, or asked of the base model",
            ("by",),
            registry=registry,
        )
        self.edits = Gauge("meg_editor_edits", "Edits in force", registry=registry)
        self.running = Gauge("meg_editor_running", "Answers under way", registry=registry)

    def text(self) -> bytes:
        """In the format that Prometheus reads."""
        return generate_latest(self._registry)


class Measured:
    """Counts requests and their seconds, by the path of the route, not of the request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499  # gone before the answer began

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
