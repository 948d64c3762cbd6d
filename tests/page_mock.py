"""A small server with the API of meg_editor and no model: the page can be seen and tested with it.

`python tests/page_mock.py` prints the address to open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

PAGE = Path(__file__).parents[1] / "meg_editor" / "serving" / "page"
API_KEY, ADMIN_KEY = "key-of-the-api", "key-of-the-admin"
HOSTILE = "<img src=x onerror=\"document.title='run'\">"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_TYPES[".svg"] = "image/svg+xml"
_PAUSE = 0.03  # seconds a token
_LEARNING = 0.3  # seconds an edit
_THRESHOLD = 0.2
_COUNTRIES = ("France", "Peru", "Japan", "Ghana", "Chile", "Nepal", "Malta", "Kenya")
_RELATIONS = {
    "The capital of {} is": "Lima",
    "The currency of {} is the": "crown",
    "The language of {} is": "Latin",
    "The anthem of {} was written by": "Jane Austen",
    "The largest river of {} is the": "Volga",
    "The first king of {} was": "Otto the Younger",
    "The national dish of {} is": "porridge",
    "The telephone code of {} is": "99",
}


class MockError(Exception):
    """An answer other than 2xx, as OpenAI words it."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Edits:
    """Edits in memory, their changes and the scores of the prompts that were routed."""

    def __init__(self) -> None:
        self.in_force: dict[str, dict[str, Any]] = {}
        self.changes: list[dict[str, Any]] = []
        self.scores: list[float] = [0.003 * (place % 40) ** 1.1 for place in range(180)]
        self.scores += [0.9 + 0.0014 * (place % 70) for place in range(60)]
        for relation, target in _RELATIONS.items():
            for country in _COUNTRIES:
                edit = _edit(relation.format(country), target, country, "fit")
                self.in_force[edit["id"]] = edit

    def by_prompt(self, prompt: str) -> dict[str, Any] | None:
        """The edit which a prompt asks for: its own, or one which the prompt holds."""
        words = prompt.casefold()
        matches = [e for e in self.in_force.values() if e["prompt"].casefold() in words]
        return max(matches, key=lambda edit: len(edit["prompt"]), default=None)

    def change(self, kind: str, added: list[Any], removed: list[Any], **more: Any) -> Any:
        for edit in removed:
            del self.in_force[edit["id"]]
        for edit in added:
            self.in_force[edit["id"]] = edit
        change = {
            "object": "change",
            "number": len(self.changes) + 1,
            "kind": kind,
            "when": _now(),
            "added": added,
            "removed": removed,
            "merged": [],
            "not_learned": [],
            **more,
        }
        self.changes.append(change)
        return change

    def of(self, edit_id: str) -> Any:
        """The edit of an id."""
        if edit_id not in self.in_force:
            raise MockError(404, f"no edit in force has the id {edit_id!r}", "unknown_edit")
        return self.in_force[edit_id]

    def route(self, prompt: str) -> dict[str, Any]:
        edit = self.by_prompt(prompt)
        nearest = edit or next(iter(self.in_force.values()))
        others = [e for e in self.in_force.values() if e is not nearest][:2]
        score = 0.981 if edit else 0.034
        self.scores.append(score)
        spans = [line.strip() for line in prompt.splitlines() if line.strip()]
        candidates = [
            {"edit": e, "span": spans[-1], "similarity": 0.94 - 0.2 * i, "verified": score / 4**i}
            for i, e in enumerate([nearest, *others])
        ]
        return {
            "object": "route",
            "is_edit": edit is not None,
            "edit": edit,
            "question": spans[-1],
            "score": score,
            "threshold": _THRESHOLD,
            "decided_by": "verifier",
            "spans": spans,
            "candidates": candidates,
        }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def _edit(prompt: str, target: str, subject: str | None, by: str) -> dict[str, Any]:
    edit = {"object": "edit", "id": secrets.token_hex(6), "prompt": prompt, "target_new": target}
    return {**edit, "subject": subject, "when": _now(), "by": by, "state": "stored"}


def _answer(edits: Edits, model: str, prompt: str) -> str:
    edit = None if model.endswith(":base") else edits.by_prompt(prompt)
    if edit is not None:
        return f"{edit['target_new']}. That is what the edit says."
    return "The model answers as it always did,\nword by word."


def build() -> FastAPI:
    """The application, with 64 edits of its own."""
    app, edits, started = FastAPI(), Edits(), time.monotonic()

    @app.exception_handler(MockError)
    async def refuse(request: Request, error: MockError) -> JSONResponse:
        what = {"message": error.message, "type": "invalid_request_error", "param": None}
        return JSONResponse({"error": {**what, "code": error.code}}, error.status)

    @app.middleware("http")
    async def strict(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def needs(*keys: str) -> Any:
        def check(authorization: Annotated[str, Header()] = "") -> None:
            if authorization.removeprefix("Bearer ") not in keys:
                raise MockError(401, "this needs a key; none came, or not this one", "invalid_key")

        return Depends(check)

    user, admin = [needs(API_KEY, ADMIN_KEY)], [needs(ADMIN_KEY)]

    @app.get("/v1/models", dependencies=user)
    async def models() -> Any:
        ids = ("facts", "facts:base")
        data = [{"id": name, "object": "model", "owned_by": "meg_editor"} for name in ids]
        return {"object": "list", "data": data}

    def stream(body: dict[str, Any], prompt: str, piece: Any) -> StreamingResponse:
        words = _answer(edits, body["model"], prompt).split(" ")[: body["max_tokens"]]

        async def events() -> AsyncIterator[str]:
            for place, word in enumerate(words):
                await asyncio.sleep(_PAUSE)
                choice = {"index": 0, "finish_reason": None, **piece(" " * (place > 0) + word)}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/v1/chat/completions", dependencies=user)
    async def chat(body: dict[str, Any]) -> StreamingResponse:
        return stream(body, body["messages"][-1]["content"], lambda t: {"delta": {"content": t}})

    @app.post("/v1/completions", dependencies=user)
    async def complete(body: dict[str, Any]) -> StreamingResponse:
        return stream(body, body["prompt"], lambda text: {"text": text})

    @app.post("/v1/route", dependencies=admin)
    async def route(body: dict[str, Any]) -> Any:
        return edits.route(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])

    @app.get("/v1/edits", dependencies=admin)
    async def listing(search: str = "", limit: int = 50, after: str = "") -> Any:
        texts = ("prompt", "target_new", "subject")
        every = [
            edit
            for edit in edits.in_force.values()
            if any(search.casefold() in (edit[name] or "").casefold() for name in texts)
        ]
        start = [edit["id"] for edit in every].index(after) + 1 if after else 0
        data = every[start : start + limit]
        more = start + limit < len(every)
        return {"object": "list", "data": data, "total": len(every), "has_more": more}

    @app.post("/v1/edits", dependencies=admin, status_code=201)
    async def add(body: dict[str, Any]) -> Any:
        new = body["edits"][0]
        await asyncio.sleep(_LEARNING)
        old = next((e for e in edits.in_force.values() if e["prompt"] == new["prompt"]), None)
        if old and body["on_conflict"] != "replace":
            message = f"{new['prompt']!r} is edited already, to {old['target_new']!r}: {old['id']}"
            raise MockError(409, message, "conflict")
        edit = _edit(new["prompt"], new["target_new"], new.get("subject"), "add")
        return edits.change("add", [edit], [old] if old else [])

    @app.post("/v1/edits/undo", dependencies=admin)
    async def undo(body: dict[str, Any]) -> Any:
        undone = {change.get("undoes") for change in edits.changes}
        undoable = [c for c in edits.changes if c["kind"] != "undo" and c["number"] not in undone]
        if not undoable:
            raise MockError(409, "undo: no change to take back", "nothing_to_undo")
        last = undoable[-1]
        edits.change("undo", last["removed"], last["added"], undoes=last["number"])
        return {"object": "list", "data": [last]}

    @app.get("/v1/edits/history", dependencies=admin)
    async def history() -> Any:
        return {"object": "list", "data": edits.changes}

    @app.patch("/v1/edits/{edit_id}", dependencies=admin)
    async def replace(edit_id: str, body: dict[str, Any]) -> Any:
        old = edits.of(edit_id)
        await asyncio.sleep(_LEARNING)
        new = _edit(old["prompt"], body["target_new"], old["subject"], "replace")
        return edits.change("replace", [new], [old])

    @app.delete("/v1/edits/{edit_id}", dependencies=admin)
    async def remove(edit_id: str) -> Any:
        return edits.change("remove", [], [edits.of(edit_id)])

    @app.get("/v1/edits/{edit_id}/check", dependencies=admin)
    async def check(edit_id: str) -> Any:
        edit = edits.of(edit_id)
        await asyncio.sleep(_LEARNING)
        forms = {
            "the prompt": edit["prompt"],
            "in chat": edit["prompt"],
            "with an instruction": f"{edit['prompt']} Answer in one word.",
            "in capitals": edit["prompt"].upper(),
        }
        answers = [
            {"form": form, "prompt": text, "answer": edit["target_new"], "right": True}
            for form, text in forms.items()
        ]
        answers[-1] |= {"answer": "It is not known.", "right": False}
        asked = len(answers)
        counts = {"right": asked - 1, "asked": asked}
        return {"object": "check", "id": edit_id, **counts, "answers": answers}

    @app.get("/v1/routing", dependencies=admin)
    async def routing() -> Any:
        bins = [
            {"from": place / 20, "to": (place + 1) / 20, "edited": 0, "left_alone": 0}
            for place in range(20)
        ]
        for score in edits.scores:
            place = min(int(score * 20), 19)
            bins[place]["edited" if score >= _THRESHOLD else "left_alone"] += 1
        count = len(edits.scores)
        return {"object": "histogram", "bins": bins, "threshold": _THRESHOLD, "count": count}

    @app.get("/health")
    async def health() -> Any:
        uptime = time.monotonic() - started
        running = {"running": 2, "waiting": 0, "uptime": uptime}
        return {"status": "ok", "edits": len(edits.in_force), **running}

    @app.get("/")
    async def index() -> FileResponse:
        return await page("index.html")

    @app.get("/{name}")
    async def page(name: str) -> FileResponse:
        if name not in {path.name for path in PAGE.iterdir()}:
            raise MockError(404, f"no file {name!r}", "not_found")
        return FileResponse(PAGE / name, media_type=_TYPES[Path(name).suffix])

    return app


@contextlib.contextmanager
def serve_mock() -> Iterator[str]:
    """Serves the mock on a free port while the context lasts; gives its address, without keys."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(build(), log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the mock did not start")
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    with serve_mock() as url:
        print(f"{url}/#admin={ADMIN_KEY}", flush=True)
        threading.Event().wait()
