"""/v1/edits and /v1/route: edits as a resource, and why a prompt is routed as it is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Response

from meg_editor.edits.change import Change
from meg_editor.edits.edit import Edit
from meg_editor.model.explanation import Explanation
from meg_editor.model.meg_model import MeGModel
from meg_editor.routing.routing import RoutedQuery
from meg_editor.serving.bodies import MAX_EDITS, NewEdits, NewTarget, RouteQuery, Undo
from meg_editor.serving.edit_store import as_change, as_edits, edit_by_id
from meg_editor.serving.errors import ApiError, api_error
from meg_editor.serving.server import Server

Part = dict[str, Any]
Result = TypeVar("Result")


def edit_routes(server: Server) -> APIRouter:
    """The routes by which edits are listed, changed and explained."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(server.admin)])

    async def change(what: Callable[[MeGModel], Result]) -> Result:
        try:
            return await server.store.change(what)
        except Exception as error:
            raise api_error(error) from error

    @router.get("/edits")
    async def edits(
        search: Annotated[str, Query(max_length=1000)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_EDITS)] = 50,
        after: str = "",
    ) -> Part:
        latest = server.model.edits[::-1]
        fits = await asyncio.to_thread(_matching, latest, search)
        start = 0
        if after:
            start = next((n + 1 for n, edit in enumerate(fits) if edit.id == after), 0)
            if not start:
                raise ApiError(
                    404,
                    "after: there is no edit with this id any more; begin at the start of the list",
                    param="after",
                    code="not_found",
                )
        shown = fits[start : start + limit]
        more = start + limit < len(fits)
        return {"object": "list", "data": as_edits(shown), "total": len(fits), "has_more": more}

    @router.post("/edits", status_code=201)
    async def add(body: NewEdits, response: Response) -> Part:
        if len(body.edits) > MAX_EDITS:
            raise ApiError(
                400,
                f"expected at most {MAX_EDITS} edits in one request, got {len(body.edits)}: send "
                "them in parts, or add them by `meg-editor add`",
                param="edits",
                code="too_many_edits",
            )
        requests = [edit.request for edit in body.edits]
        done = await change(lambda model: model.add(requests, on_conflict=body.on_conflict))
        if not done.added.edits:  # in force already
            response.status_code = 200
        return as_change(done)

    @router.get("/edits/history")
    async def history() -> Part:
        changes = server.model.history()
        data = await asyncio.to_thread(lambda: [as_change(each) for each in changes])
        return {"object": "list", "data": data}

    @router.post("/edits/undo")
    async def undo(body: Undo) -> Part:
        taken = await change(lambda model: model.undo(body.steps))
        return {"object": "list", "data": [as_change(each) for each in taken]}

    @router.get("/edits/{identity}")
    async def edit(identity: str) -> Part:
        return as_edits([edit_by_id(server.model, identity)])[0]

    @router.patch("/edits/{identity}")
    async def patch(identity: str, body: NewTarget) -> Part:
        def replace(model: MeGModel) -> Change:
            former = edit_by_id(model, identity)
            request = {"prompt": former.prompt, "subject": former.subject}
            return model.replace([{**request, "target_new": body.target_new}])

        return as_change(await change(replace))

    @router.delete("/edits/{identity}")
    async def delete(identity: str) -> Part:
        def remove(model: MeGModel) -> Change:
            edit_by_id(model, identity)
            return model.remove(identity)

        return as_change(await change(remove))

    @router.get("/edits/{identity}/check")
    async def check(identity: str) -> Part:
        answers = await server.store.check(edit_by_id(server.model, identity))
        right = sum(answer["right"] for answer in answers)
        return {
            "object": "check",
            "id": identity,
            "right": right,
            "asked": len(answers),
            "answers": answers,
        }

    @router.post("/route")
    async def route(body: RouteQuery) -> Part:
        if body.messages is not None:
            ids, param = await server.chat_ids(body.messages), "messages"
        else:
            ids, param = await server.prompt_ids(body.prompt or ""), "prompt"
        server.max_tokens(ids, None, param)
        text = server.text_of(ids)
        return await asyncio.to_thread(_explained, server.model, text)

    @router.get("/routing")
    async def routing() -> Part:
        return server.routing.histogram()

    return router


def _matching(edits: tuple[Edit, ...], search: str) -> list[Edit]:
    words = search.casefold().split()
    if not words:
        return list(edits)

    def fits(edit: Edit) -> bool:
        parts = (edit.prompt, edit.target_new, edit.subject or "", edit.id)
        text = "\n".join(parts).casefold()
        return all(word in text for word in words)

    return list(filter(fits, edits))


def _explained(model: MeGModel, text: str) -> Part:
    why = Explanation.of(model, text)
    routed = why.routed
    return {
        "object": "route",
        "is_edit": routed.is_edit,
        "edit": as_edits([why.nearest])[0] if routed.is_edit and why.nearest else None,
        "question": routed.question,
        "score": _finite(routed, routed.score),
        "threshold": _finite(routed, routed.threshold),
        "decided_by": "verifier" if why.verified else "similarity",
        "read_with": routed.read_with,
        "spans": list(why.spans),
        "system": why.system,
        "goes_back": why.goes_back,
        "candidates": [
            {
                "edit": as_edits([edit])[0],
                "span": candidate.span,
                "similarity": candidate.similarity,
                "verified": candidate.verified,
                "named": candidate.named,
                "differs": candidate.differs,
            }
            for edit, candidate in why.considered
        ],
    }


def _finite(routed: RoutedQuery, value: float) -> float | None:
    return value if routed.edit >= 0 and math.isfinite(value) else None
