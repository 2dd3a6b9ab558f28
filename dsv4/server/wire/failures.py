"""Turns every exception into a response: an error in the form of its route's dialect."""

import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from dsv4.observe import log
from dsv4.server.wire.errors import ApiError
from dsv4.server.wire.response import json_response


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a route belongs to Anthropic's interface."""
    path = scope["path"]
    return "/messages" in path or path.startswith("/anthropic")


def error_body(error: ApiError, scope: Scope) -> dict[str, Any]:
    """The error in the form of the route's dialect."""
    if speaks_anthropic(scope):
        return error.anthropic_body(scope.get("state", {}).get("request_id"))
    return error.body()


def error_response(error: ApiError, scope: Scope) -> Response:
    """The response of an error, with its headers."""
    status = 529 if error.status == 503 and speaks_anthropic(scope) else error.status
    response = json_response(error_body(error, scope), status)
    response.headers.update(error.headers or {})
    return response


def as_api_error(error: BaseException) -> ApiError:
    """`error` itself; for an unexpected exception a 500, and a line in the log."""
    if isinstance(error, ApiError):
        return error
    log("internal_error", error=repr(error), traceback=traceback.format_exc())
    return ApiError(500, f"internal error: {type(error).__name__}", code="internal_error")


async def _handle(request: Request, error: Exception) -> Response:
    path = request.url.path
    match error:
        case HTTPException(status_code=404):
            error = ApiError(404, f"no such route: {request.method} {path}", code="not_found", headers=error.headers)
        case HTTPException(status_code=405):
            text = f"{path} does not allow {request.method}"
            error = ApiError(405, text, code="method_not_allowed", headers=error.headers)
        case HTTPException():
            error = ApiError(error.status_code, str(error.detail), headers=error.headers)
    return error_response(as_api_error(error), request.scope)


# for the exceptions of routes and of Starlette
HANDLERS = dict.fromkeys((ApiError, HTTPException), _handle)
