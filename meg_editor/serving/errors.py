"""What goes wrong, in the shape in which OpenAI's clients expect it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from meg_editor.config.input_files import short_repr
from meg_editor.edits.conflicts import ConflictError, UnknownEditError
from meg_editor.model.saved.appending import OtherWriterError
from meg_editor.requests.request import RequestError

_LOG = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ApiError(Exception):
    """An error with its HTTP status.

    Attributes:
        param: the field of the body that is wrong, if one is.
        code: a word for programs.
        headers: of the answer.

    Example:
        >>> ApiError(404, "there is no edit 'abc'", code="not_found").body["error"]["code"]
        'not_found'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def api_error(error: BaseException) -> ApiError:
    """The answer to an exception; what nobody foresaw is logged, and says nothing of the machine.

    Example:
        >>> api_error(MemoryError()).status
        503
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConflictError):
        return ApiError(409, str(error), code="conflict")
    if isinstance(error, UnknownEditError):
        return ApiError(404, str(error), code="not_found")
    if isinstance(error, OtherWriterError):
        message = "the folder was changed by another program: nothing was done; restart the server"
        return ApiError(409, message, code="other_writer")
    if isinstance(error, RequestError | FloatingPointError):
        return ApiError(400, str(error))
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return ApiError(503, "out of memory: send less at once", code="out_of_memory")
    if isinstance(error, OSError):
        _LOG.error("a change could not be saved", exc_info=error)
        if error.errno in _FULL:
            return ApiError(507, "the disk is full: nothing was changed", code="disk_full")
        return ApiError(503, "the folder cannot be written: nothing was changed", code="not_saved")
    _LOG.error("unforeseen", exc_info=error)
    return ApiError(500, "an error which nobody foresaw; the server's log says which")


def add_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Have `app` answer every error in OpenAI's shape.

    Args:
        routes: what is served; those in its schema are named to who asks for another path.
    """

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            message, where = f"the body is not JSON: {first.get('ctx', {}).get('error', '')}", ""
        elif first["type"] in ("model_attributes_type", "missing") and not where:
            message = "expected a JSON object, sent as Content-Type: application/json"
        text = f"{where}: {message}" if where else message
        return ApiError(400, text, param=where or None).response

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in (404, 405):
            return _nowhere(request, routes).response
        headers = dict(error.headers) if error.headers else None
        message = str(error.detail)
        if message == "There was an error parsing the body":  # FastAPI's
            message = "the body cannot be read as JSON in UTF-8"
        return ApiError(error.status_code, message, headers=headers).response

    @app.exception_handler(Exception)
    async def other(_: Request, error: Exception) -> JSONResponse:
        return api_error(error).response

    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> JSONResponse:
        return error.response


def _nowhere(request: Request, routes: Sequence[BaseRoute]) -> ApiError:
    """The answer to a path or a method which no route serves."""
    found = [route for route in routes if isinstance(route, Route)]
    here = [route for route in found if route.matches(request.scope)[0] is not Match.NONE]
    path = short_repr(request.scope["path"])
    if here:
        allowed = ", ".join(sorted({method for route in here for method in route.methods or ()}))
        message = f"expected {allowed} at {path}, got {request.method}"
        return ApiError(405, message, code="method_not_supported", headers={"Allow": allowed})
    served: dict[str, set[str]] = {}
    for route in found:
        if route.include_in_schema:
            served.setdefault(route.path_format, set()).update(route.methods or ())
    names = "; ".join(f"{', '.join(sorted(methods))} {name}" for name, methods in served.items())
    return ApiError(404, f"expected a path which is served, got {path}; served are {names}")
