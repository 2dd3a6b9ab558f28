"""A request in the words of the encoding, whatever dialect it came in, and what may be read out of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dsv4.encoding import Dialect
from dsv4.server.backend.models import NOT_THINKING

# what official clients may rely on when they set no limit (September documentation)
DEFAULT_TOKENS = 8_192
DEFAULT_TOKENS_THINKING = 65_536
DEFAULT_TOKENS_MAX_EFFORT = 131_072

# a user that is an object is read, to leave out its session, up to so many characters
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
class ToolChoice:
    """Whether functions may be called. name: the one that must be, with mode `required`, within `namespace`.
    single: at most one call."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    namespace: str | None = None
    single: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What one request wants.

    messages: as the encoding takes them (system, user, assistant, tool, latest_reminder), without tools.
    functions: what the model is shown at the head of the prompt; late: what it is shown further back, where the
    conversation brings them in. strict: the names of those whose schemas must hold.
    effort: a name of the dialect, None without thinking.
    budget: the most tokens of reasoning; None = no limit of its own.
    task: a quick instruction: a control token behind the last message asks for a title, a search query and the
    like, and the answer has no reasoning. The prompt before it is that of the conversation, cached as it is.
    limit: the longest answer in tokens; None = the default of the mode.
    sampling: fields of SamplingParams the client has set.
    schema: JSON schema the answer must follow; any_object: the client asked for JSON without naming a schema.
    continued: the last message is the beginning of the answer. forces_call: the prompt begins the call that is
    required, if the model does not think first.
    owner: who asks; owners share no cached prefixes. key: the name of the key, "" without keys.
    raw: the prompt's ids, for requests that are no conversation; then there are no messages.
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

    @property
    def tools(self) -> bool:
        """Whether the model may call functions."""
        return bool(self.callable) and self.choice.mode != "none"

    @property
    def callable(self) -> list[dict[str, Any]]:
        """All functions that a call may name, wherever the prompt shows them."""
        return [*self.functions, *self.late]

    @property
    def opens_call(self) -> bool:
        """Whether the answer begins inside a block of calls, which the prompt has opened."""
        required = self.forces_call and self.tools and self.choice.mode == "required"
        return required and not self.thinking and not self.continued and self.task is None

    @property
    def thinking_mode(self) -> Literal["chat", "thinking"]:
        """The mode as the encoding names it."""
        return "thinking" if self.thinking else "chat"

    @property
    def opens_thinking(self) -> bool:
        """Whether the answer begins inside the reasoning."""
        return self.thinking and self.task is None and not (self.continued and self.messages[-1]["content"])

    @property
    def default_tokens(self) -> int:
        """The longest answer if the client sets no limit."""
        if not self.thinking:
            return DEFAULT_TOKENS
        return DEFAULT_TOKENS_MAX_EFFORT if self.effort == "max" else DEFAULT_TOKENS_THINKING


def thinks(model: str | None, effort: str | None, kind: str | None) -> bool:
    """On unless something says off: `thinking.type`, which goes first, an effort of none, or the alias without
    thinking."""
    if kind is not None:
        return kind != "disabled"
    return effort != "none" and model != NOT_THINKING


def effort_name(requested: str | None, dialect: Dialect) -> str:
    """The effort as the dialect names it; a release without a low effort answers with high."""
    name = EFFORTS.get(requested or "high", "high")
    return name if name in dict(dialect.efforts) else "high"


def supported_efforts(dialect: Dialect) -> tuple[str, ...]:
    """What a client may choose from."""
    return ("none", *(name for name, _ in dialect.efforts))


def owner_name(key: str, *users: object) -> str:
    """Whose cached prefixes a request may use: those of its key and of the first user named. A digest of both, of one
    length whatever they are called; "" for nobody in particular.

    Clients that name a session with the user would share nothing between sessions, so that part is left out.
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
    # two digests, so that no key and user read together are another key and user
    parts = (hashlib.blake2b(part.encode(errors="surrogatepass"), digest_size=32).digest() for part in (key, user))
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()
