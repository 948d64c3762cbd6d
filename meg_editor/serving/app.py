"""The application: routes, page, keys and limits around one server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from meg_editor.serving.completions import completion_routes
from meg_editor.serving.edits import edit_routes
from meg_editor.serving.errors import add_handlers
from meg_editor.serving.limits import SizeLimit
from meg_editor.serving.metrics import Measured
from meg_editor.serving.server import Server

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def build_app(server: Server, hosts: list[str] | None = None) -> FastAPI:
    """The application that serves a model.

    Args:
        hosts: names by which it may be addressed; None: any. A page of another site cannot then
            reach a server on this machine by giving its own name this machine's address.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await server.close()

    app = FastAPI(
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    routers = [completion_routes(server), edit_routes(server)]
    for router in routers:
        app.include_router(router)

    @app.api_route("/health", methods=["GET", "HEAD"])  # load balancers ask either way
    async def health() -> Response:
        alive = server.engine.is_alive()
        engine = server.engine
        content = {
            "status": "ok" if alive else "restarting",
            "edits": len(server.model.edits),
            "running": engine.running,
            "waiting": server.routing.waiting,
            "uptime": round(time.time() - server.started, 1),
        }
        return JSONResponse(content, 200 if alive else 503)

    @app.get("/metrics", dependencies=[Depends(server.api)])
    async def metrics() -> Response:
        server.metrics.edits.set(len(server.model.edits))
        server.metrics.running.set(server.engine.running)
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    for name, content in _page().items():
        for path in (f"/{name}", "/") if name == "index.html" else (f"/{name}",):
            served = _file(name, content)
            app.add_api_route(path, served, methods=["GET"], include_in_schema=False)
    routes = [route for router in (*routers, app.router) for route in router.routes]
    add_handlers(app, routes)
    app.add_middleware(SizeLimit, max_bytes=server.limits.body)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.add_middleware(Measured, metrics=server.metrics)
    return app


def _page() -> dict[str, bytes]:
    """The files of the page."""
    folder = files("meg_editor.serving") / "page"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if any(file.name.endswith(ending) for ending in _TYPES)
    }


def _file(name: str, content: bytes) -> Any:
    kind = _TYPES[name[name.rindex(".") :]]

    async def get() -> Response:
        return Response(content, media_type=kind, headers=_PAGE_HEADERS)

    return get
