"""Errors in the form of the official service: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RATE_LIMIT = "rate_limit_error"
RETRY_SECONDS = 2

# the error types of Anthropic's interface by status
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: RATE_LIMIT,
    503: "overloaded_error",
}
SHOWN = 80


class ApiError(Exception):
    """Ends a request with `status` and the four fields of the error body.

    param: the wrong field of the request, as `messages[2].content`; None if there is no single one.
    code: the error for programs, as `context_length_exceeded`.

    >>> ApiError(404, "no such model: 'x'", param="model", code="model_not_found")
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = INVALID_REQUEST,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.type = type or (INVALID_REQUEST if status < 500 else SERVER_ERROR)
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The error as the JSON object that goes over the wire."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": fields}

    def anthropic_body(self, request_id: str | None = None) -> dict[str, Any]:
        """The same in the form of Anthropic's interface."""
        kind = ANTHROPIC_TYPES.get(self.status, INVALID_REQUEST if self.status < 500 else "api_error")
        message = self.message
        if isinstance(self, ContextOverflow):
            # Claude Code shortens the conversation when it finds these words
            message = f"prompt is too long: {self.prompt} tokens > {self.context} maximum"
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


class ContextOverflow(ApiError):
    """A prompt that leaves no room for an answer. Each dialect has its own message. Numbers are tokens."""

    def __init__(self, prompt: int, completion: int, context: int) -> None:
        super().__init__(
            400,
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt + completion} tokens ({prompt} in the messages, {completion} in the completion). "
            "Please reduce the length of the messages or completion.",
            param="messages",
            code="context_length_exceeded",
        )
        self.prompt, self.completion, self.context = prompt, completion, context


def busy(message: str, seconds: int = RETRY_SECONDS) -> ApiError:
    """A 429 with the seconds after which the client may try again."""
    headers = {"retry-after": str(seconds)}
    return ApiError(429, message, type=RATE_LIMIT, code="rate_limit_exceeded", headers=headers)


def stopping() -> ApiError:
    """A 503: the server accepts no more requests and ends those that run."""
    return ApiError(503, "the server is stopping", code="stopping", headers={"retry-after": "10"})


def operators_only(what: str) -> ApiError:
    """A 403 for a key that is no operator's: `only an operator's key may see training runs`."""
    return ApiError(403, f"only an operator's key may {what}", type="permission_error", code="forbidden")


def invalid(param: str, problem: str, *, code: str = INVALID_REQUEST) -> ApiError:
    """A 400 that names the field: `temperature: must be in [0, 2], got 3`."""
    return ApiError(400, f"{param}: {problem}", param=param, code=code)


@contextmanager
def naming_field(param: str) -> Iterator[None]:
    """A ValueError inside the block becomes a 400 that names the field."""
    try:
        yield
    except ValueError as error:
        raise invalid(param, str(error)) from error


def from_validation(error: ValidationError) -> ApiError:
    """The first problem pydantic found, as a 400 naming its field."""
    problem = error.errors(include_url=False)[0]
    place = field_path(problem["loc"]) or "body"
    context = problem.get("ctx", {})
    match problem["type"]:
        case "missing":
            return invalid(place, "required, but missing")
        case "value_error":
            return invalid(place, str(context["error"]))
        case "literal_error":
            return invalid(place, f"expected {context['expected']}, got {show(problem['input'])}")
        case _:
            text = str(problem["msg"]).replace("Input should", "must")
            return invalid(place, f"{text}, got {show(problem['input'])}")


def field_path(location: Sequence[int | str]) -> str:
    """`("messages", 2, "content")` as `messages[2].content`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def show(value: object) -> str:
    """A value for an error message, cut to a readable length."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
