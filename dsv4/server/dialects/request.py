"""The common form of a request of any dialect, in the terms of the encoding."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dsv4.encoding import Dialect
from dsv4.server.backend.models import NOT_THINKING

# the official service's limits for requests without one (documentation of September 2026)
DEFAULT_TOKENS = 8_192
DEFAULT_TOKENS_THINKING = 65_536
DEFAULT_TOKENS_MAX_EFFORT = 131_072

# a longer `user` is not parsed as an object
LONGEST_USER_OBJECT = 16_384
EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}


@dataclass(frozen=True, slots=True)
class AllowedTool:
    """A function that may be called, within `namespace`. place: where the request names it."""

    name: str
    namespace: str | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether functions may be called. name: with mode `required`, the function that must be called, within
    `namespace`. single: at most one call. allowed: the only functions that may be called, None = all."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    namespace: str | None = None
    single: bool = False
    allowed: tuple[AllowedTool, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request.

    messages: in the form of the encoding (system, user, assistant, tool, latest_reminder), without tools.
    functions: those at the head of the prompt; late: those that a later message of the conversation adds. strict: the
    names of the functions whose schemas are enforced.
    effort: a name of the dialect, None without thinking.
    budget: the largest number of reasoning tokens; None = no limit.
    task: a quick instruction, such as a title or a search query for the conversation. It is a control token behind the
    last message, so the prompt before it is cached; the answer has no reasoning.
    limit: the longest answer in tokens; None = the default of the mode. ignore_eos: the model does not end the answer.
    sampling: fields of SamplingParams that the client has set.
    schema: the JSON schema of the answer; any_object: the client wants a JSON object without a schema.
    continued: the last message is the beginning of the answer. forces_call: the prompt begins the required call, unless
    the model thinks first.
    owner: owners share no cached prefixes. key: the name of the client's key, "" without keys.
    raw: the prompt's ids, for a request that is no conversation; then there are no messages. plain: the client reads
    the answer by the token. answers: how many answers the client wants.
    """

    model: str
    messages: list[dict[str, Any]]
    functions: Sequence[dict[str, Any]] = ()
    late: Sequence[dict[str, Any]] = ()
    choice: ToolChoice = ToolChoice()
    parallel: bool = True
    strict: frozenset[str] = frozenset()
    thinking: bool = True
    effort: str | None = None
    budget: int | None = None
    task: str | None = None
    limit: int | None = None
    ignore_eos: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stop: Sequence[str] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    schema: Mapping[str, Any] | None = None
    any_object: bool = False
    continued: bool = False
    forces_call: bool = False
    owner: str = ""
    key: str = ""
    raw: tuple[int, ...] | None = None
    plain: bool = False
    answers: int = 1

    @property
    def tools(self) -> bool:
        """Whether the model may call functions."""
        return bool(self.callable) and self.choice.mode != "none"

    @property
    def shown(self) -> list[dict[str, Any]]:
        """All functions of the prompt."""
        return [*self.functions, *self.late]

    @property
    def callable(self) -> list[dict[str, Any]]:
        """All functions that a call may name."""
        if self.choice.allowed is None:
            return self.shown
        allowed = {tool.name for tool in self.choice.allowed}
        return [function for function in self.shown if function["name"] in allowed]

    @property
    def enforces_calls(self) -> bool:
        """Whether a call that the model makes of its own choice must follow a grammar: schemas are strict, or only some
        of the functions may be called."""
        return self.tools and (bool(self.strict) or self.choice.allowed is not None)

    @property
    def opens_call(self) -> bool:
        """Whether the prompt opens a block of calls, inside which the answer begins."""
        required = self.forces_call and self.tools and self.choice.mode == "required"
        return required and not self.thinking and not self.continued and self.task is None

    @property
    def thinking_mode(self) -> Literal["chat", "thinking"]:
        """The name of the mode in the encoding."""
        return "thinking" if self.thinking else "chat"

    @property
    def opens_thinking(self) -> bool:
        """Whether the answer begins inside the reasoning."""
        return self.thinking and self.task is None and not (self.continued and self.messages[-1]["content"])

    @property
    def default_tokens(self) -> int:
        """The longest answer in tokens without a limit of the client."""
        if not self.thinking:
            return DEFAULT_TOKENS
        return DEFAULT_TOKENS_MAX_EFFORT if self.effort == "max" else DEFAULT_TOKENS_THINKING


def thinks(model: str | None, effort: str | None, kind: str | None) -> bool:
    """Whether the model thinks. `kind` (`thinking.type`) decides if it is given; else it thinks, unless the effort is
    none or the model is the alias without thinking."""
    if kind is not None:
        return kind != "disabled"
    return effort != "none" and model != NOT_THINKING


def effort_name(requested: str | None, dialect: Dialect) -> str:
    """The dialect's name of an effort; high for one that the dialect does not have."""
    name = EFFORTS.get(requested or "high", "high")
    return name if name in dict(dialect.efforts) else "high"


def supported_efforts(dialect: Dialect) -> tuple[str, ...]:
    """The efforts that a client may choose."""
    return ("none", *(name for name, _ in dialect.efforts))


def owner_name(key: str, *users: object) -> str:
    """The owner of a request's cached prefixes: a digest of its key and of the first user that is given; "" without
    both.

    Some clients put a session into the name of the user. It is left out, so that sessions of one user share prefixes.
    """
    user = next((str(user) for user in users if user not in (None, "")), "")
    try:
        fields = json.loads(user) if user.startswith("{") and len(user) <= LONGEST_USER_OBJECT else None
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        user = json.dumps({name: value for name, value in fields.items() if "session" not in name}, sort_keys=True)
    user = user.split("_session_")[0]
    if not (key or user):
        return ""
    # a digest of each part, so that no two pairs of key and user have the same bytes
    parts = (hashlib.blake2b(part.encode(errors="surrogatepass"), digest_size=32).digest() for part in (key, user))
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()
