"""What all requests of one server share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammars
from dsv4.generation import SamplingDefaults
from dsv4.server.accounts.ledger import Ledger
from dsv4.server.accounts.metrics import Metrics
from dsv4.server.accounts.prices import Prices
from dsv4.server.backend.endable import Endable
from dsv4.server.backend.replay import Replays
from dsv4.server.guard.admission import Admission
from dsv4.server.guard.keys import Keys
from dsv4.server.wire.body import Bodies, body_limit
from dsv4.server.wire.workers import Workers


@dataclass(frozen=True, slots=True)
class Settings:
    """How the server behaves.

    keys: who may use the server; none = anyone who reaches it.
    local_only: answer only requests addressed to this machine and sent by no other site's page.
    any_model: answer to every model name.
    free_sampling: temperature and the like count while thinking too; the official service fixes them there.
    max_requests: answers at once; more are refused as busy.
    keep_alive: seconds of silence after which something is sent.
    body_seconds: how long a client may pause while it sends its body.
    most_body_bytes: of one request; None = as the context length needs.
    prices: what answers would have cost, for log and ledger.
    """

    keys: Keys = Keys()  # noqa: RUF009 (frozen)
    local_only: bool = True
    any_model: bool = False
    free_sampling: bool = False
    max_requests: int = 1024
    keep_alive: float = 10.0
    body_seconds: float = 60.0
    most_body_bytes: int | None = None
    prices: Prices = Prices()  # noqa: RUF009 (frozen)


@dataclass(slots=True)
class Backend:
    """One model and everything that outlives a request. counters: numbers of the engine for the metrics page;
    ledger: where usage is kept, None = nowhere. running: answers that are being generated."""

    generator: Endable
    tokenizer: Tokenizer
    model_name: str
    defaults: SamplingDefaults
    settings: Settings
    counters: Callable[[], Mapping[str, float]] | None = None
    metrics: Metrics = field(default_factory=Metrics)
    replays: Replays = field(default_factory=Replays)
    ledger: Ledger | None = None
    grammars: Grammars = field(init=False)
    admission: Admission = field(init=False)
    bodies: Bodies = field(init=False)
    workers: Workers = field(default_factory=Workers)
    running: int = 0

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.tokenizer)
        settings, most = self.settings, self.settings.most_body_bytes
        self.admission = Admission(settings.keys, local_only=settings.local_only, max_requests=settings.max_requests)
        self.bodies = Bodies(body_limit(self.generator.context_length) if most is None else most)
