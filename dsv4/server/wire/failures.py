"""Every failure as a response that a client understands: an error in the form of its route's dialect."""

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
    """`error` itself, or a 500 for one that nobody expected, which is logged."""
    if isinstance(error, ApiError):
        return error
    log("internal_error", error=repr(error), traceback=traceback.format_exc())
    return ApiError(500, f"internal error: {type(error).__name__}", code="internal_error")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            text, code = f"no such route: {request.method} {path}", "not_found"
        case 405:
            text, code = f"{path} does not allow {request.method}", "method_not_allowed"
        case _:
            text, code = str(error.detail), "invalid_request_error"
    return error_response(ApiError(error.status_code, text, code=code, headers=error.headers), request.scope)


# what routes and the framework raise -> how it is answered
HANDLERS = {ApiError: _api_error, HTTPException: _http_error}
