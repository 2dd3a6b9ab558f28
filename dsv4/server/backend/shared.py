"""`Settings`: how a server behaves. `Backend`: the objects that all its requests share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammars
from dsv4.generation import SamplingDefaults
from dsv4.server.accounts.ledger import Ledger
from dsv4.server.accounts.metrics import Metrics
from dsv4.server.accounts.prices import Prices
from dsv4.server.accounts.rates import TokenRates
from dsv4.server.accounts.tracing import Tracing
from dsv4.server.backend.active import ActiveAnswer
from dsv4.server.backend.endable import Endable
from dsv4.server.backend.replay import Replays
from dsv4.server.guard.admission import Admission
from dsv4.server.guard.cors import Origins
from dsv4.server.guard.keys import Keys
from dsv4.server.mcp import AllowedMcp
from dsv4.server.storage.history import History
from dsv4.server.storage.responses import StoredResponses
from dsv4.server.wire.body import Bodies, body_limit
from dsv4.server.wire.workers import Workers

MOST_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Settings:
    """How the server behaves.

    keys: of the clients; without keys every client is served.
    local_only: refuse requests to another host name than this machine's, and requests from pages of other sites.
    any_model: accept every model name.
    free_sampling: apply temperature, top_p and the like also while the model thinks, where the official service fixes
    them.
    free_calls: let the model write calls of tools as it likes where the client asks for no form; malformed ones become
    text.
    max_requests: requests that run at once; more are refused as busy. 0 refuses all.
    keep_alive: seconds without an event after which the server sends a sign of life.
    body_seconds: the longest pause of a client while it sends its body.
    most_body_bytes: the largest body; None = as large as the context length needs.
    prices: for the cost of an answer in log and ledger.
    origins: other sites whose pages may use the server.
    mcp: the MCP servers that the page may use.
    runs: the folder of training runs for the page of them; None = there is none.

    Raises ValueError naming the field and its range.
    """

    keys: Keys = Keys()  # noqa: RUF009 (frozen)
    local_only: bool = True
    any_model: bool = False
    free_sampling: bool = False
    free_calls: bool = False
    max_requests: int = 1024
    keep_alive: float = 10.0
    body_seconds: float = 60.0
    most_body_bytes: int | None = None
    prices: Prices = Prices()  # noqa: RUF009 (frozen)
    origins: Origins = Origins()  # noqa: RUF009 (frozen)
    mcp: AllowedMcp = AllowedMcp()  # noqa: RUF009 (frozen)
    runs: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_requests", 0), ("most_body_bytes", 1)):
            value = getattr(self, name)
            if not ((isinstance(value, int) and value >= least) or (value is None and name == "most_body_bytes")):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("keep_alive", "body_seconds"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value <= MOST_SECONDS):
                raise ValueError(f"{name} must be seconds in (0, {MOST_SECONDS:,}], got {value!r}")


@dataclass(slots=True)
class Backend:
    """One model and everything that outlives a request. counters: numbers of the engine for the metrics page; ledger:
    records usage; history: keeps the conversations of the chat page; responses: stores Responses; None = nothing does.
    facts: of the loaded model, for the description. architecture: describes the model for its page; called once, in a
    thread. tracing: takes the spans of answers, None = there are none. running: answers that are being generated;
    active: those by id, each as a function that tells how far it is."""

    generator: Endable
    tokenizer: Tokenizer
    model_name: str
    defaults: SamplingDefaults
    settings: Settings
    counters: Callable[[], Mapping[str, float]] | None = None
    metrics: Metrics = field(default_factory=Metrics)
    replays: Replays = field(default_factory=Replays)
    ledger: Ledger | None = None
    history: History | None = None
    responses: StoredResponses | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    architecture: Callable[[], Mapping[str, Any]] | None = None
    tracing: Tracing | None = None
    rates: TokenRates = field(default_factory=TokenRates)
    active: dict[str, Callable[[], ActiveAnswer]] = field(default_factory=dict)
    grammars: Grammars = field(init=False)
    admission: Admission = field(init=False)
    bodies: Bodies = field(init=False)
    workers: Workers = field(default_factory=Workers)
    running: int = 0

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.tokenizer)
        settings, most = self.settings, self.settings.most_body_bytes
        self.admission = Admission(
            settings.keys,
            local_only=settings.local_only,
            max_requests=settings.max_requests,
            origins=settings.origins,
        )
        self.bodies = Bodies(body_limit(self.generator.context_length) if most is None else most)
