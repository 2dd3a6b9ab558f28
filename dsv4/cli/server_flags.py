"""The flags of the server: keys, limits, accounts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

from cyclopts import Parameter

from dsv4.cli.flags import at_least, writable

if TYPE_CHECKING:
    from dsv4.server import Keys, Settings
    from dsv4.server.accounts.ledger import Ledger
    from dsv4.server.accounts.tracing import Tracing
    from dsv4.server.storage.history import History
    from dsv4.server.storage.responses import StoredResponses

KEYS_VARIABLE = "DSV4_API_KEYS"


class ServerFiles(TypedDict):
    """What a server writes to; None = nothing is written."""

    ledger: "Ledger | None"
    history: "History | None"
    responses: "StoredResponses | None"
    tracing: "Tracing | None"


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """Keys, limits and accounts of the server.

    Parameters
    ----------
    keys
        File of API keys, one per line: `name key`, with optional limits behind: `requests=60 tokens=100000` per minute,
        `day=5000000` tokens, `concurrent=4`. `admin` behind a key makes it an operator's, which sees the requests and
        usage of all keys; a single key is. The variable DSV4_API_KEYS also holds keys, separated by commas.
    insecure
        Serve other machines without keys.
    any_model
        Accept every model name, not only the known ones.
    free_sampling
        Apply temperature, top_p and the like while the model thinks; by default they are fixed there.
    free_calls
        Let the model write calls of tools as it likes; by default a call that it begins has the form of its schema.
        Calls of strict tools, and calls that a request forces, have their form in any case.
    requests
        Requests that run at the same time; further ones are refused as busy.
    body_limit
        The largest request body in MiB. Default: 64 bytes for each token of the context, and at least 16 MiB.
    drain
        Seconds that running answers may take to finish after Ctrl-C or SIGTERM; a second signal ends them at once.
    ledger
        SQLite file that records usage for `dsv4 usage`; `none` records nothing. Default: in the user's data folder.
    prices
        TOML file of prices in US dollars per million tokens; other models have the published prices.
    store
        Folder in which Responses are stored, for `previous_response_id`. Default: they are not stored.
    store_days
        Days after its last response for which a stored conversation is kept.
    store_size
        The largest size of the stored conversations of one key in MiB; the oldest are dropped first.
    history
        Folder in which the chat page keeps its conversations. Default: each browser keeps its own.
    cors
        Origin of another site whose pages may use the server, as https://chat.example.org; may be given several times.
        `*` means every page on the web.
    mcp
        JSON file of MCP servers (`mcpServers`) that the web chat may use; no other program can be started.
    runs
        Folder of training runs, whose curves the page `/training` draws while they run.
    otel
        Address of an OpenTelemetry collector (http://127.0.0.1:4318) that gets a trace of each answer, or `env`: as the
        variables OTEL_EXPORTER_OTLP_* say. Needs the extra `otel`.
    otel_sample
        The share of traces that is kept, above 0 and at most 1. Default: as the variable OTEL_TRACES_SAMPLER says, all.
    otel_content
        Traces hold the texts of prompts and answers too; without it they hold counts and times only.
    record
        JSONL file to which requests are added without their texts: lengths, times, hashes of prefixes. `dsv4 bench
        serve` and `dsv4 simulate` read it as --trace.
    """

    keys: Path | None = None
    insecure: bool = False
    any_model: bool = False
    free_sampling: bool = False
    free_calls: bool = False
    requests: int = 1024
    body_limit: int | None = None
    drain: int = 30
    ledger: Path | None = None
    prices: Path | None = None
    store: Path | None = None
    store_days: int = 30
    store_size: int = 1024
    history: Path | None = None
    cors: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    mcp: Path | None = None
    runs: Path | None = None
    otel: str | None = None
    otel_sample: float | None = None
    otel_content: bool = False
    record: Path | None = None

    def settings(self, host: str, *, remote: bool = False) -> "Settings":
        """The settings of a server on `host`. remote: an engine elsewhere answers; there a grammar that begins with a
        call is a second request. Raises FileNotFoundError or ValueError for keys that cannot be read, and
        ValueError for an address that other machines can reach without a key."""
        from dsv4.server import Settings
        from dsv4.server.accounts.prices import Prices
        from dsv4.server.guard.cors import Origins
        from dsv4.server.guard.origin import is_loopback
        from dsv4.server.mcp import AllowedMcp

        at_least(1, requests=self.requests, body_limit=self.body_limit)
        at_least(1, store_days=self.store_days, store_size=self.store_size)
        at_least(0, drain=self.drain)
        writable("--record", self.record, ".jsonl")
        if self.runs is not None and not self.runs.is_dir():
            raise FileNotFoundError(f"--runs {self.runs}: no such folder")
        for flag, folder in (("--store", self.store), ("--history", self.history)):
            if folder is not None and folder.exists() and not folder.is_dir():
                raise NotADirectoryError(f"{flag} {folder}: must be a folder, is a file")
        known = read_keys(self.keys, os.environ.get(KEYS_VARIABLE, ""))
        if not (known or self.insecure or is_loopback(host)):
            raise ValueError(
                f"host must be an address of this machine only (127.0.0.1, ::1, localhost), got {host!r}: "
                "without keys anyone on the network could use the server; give it --keys FILE, or --insecure"
            )
        if self.mcp is not None and not (known or is_loopback(host)):
            raise ValueError(
                f"--mcp starts programs for who can reach {host!r}: give the server --keys FILE, or another address"
            )
        return Settings(
            known,
            local_only=is_loopback(host) and not known,
            any_model=self.any_model,
            free_sampling=self.free_sampling,
            free_calls=self.free_calls or remote,
            max_requests=self.requests,
            most_body_bytes=None if self.body_limit is None else self.body_limit << 20,
            prices=Prices.load(self.prices) if self.prices is not None else Prices(),
            origins=Origins.parse(self.cors),
            mcp=AllowedMcp.load(self.mcp) if self.mcp is not None else AllowedMcp(),
            runs=self.runs,
        )

    def open_files(self) -> "ServerFiles":
        """What the server writes, as arguments of `create_app`. Raises OSError for a path that cannot be used."""
        from dsv4.server.accounts.ledger import OFF, Ledger, default_ledger
        from dsv4.server.storage.history import History
        from dsv4.server.storage.responses import StoredResponses, StoreLimits

        limits = StoreLimits(self.store_days, self.store_size << 20)
        return {
            "ledger": None if str(self.ledger) == OFF else Ledger(self.ledger or default_ledger()),
            "history": None if self.history is None else History(self.history),
            "responses": None if self.store is None else StoredResponses(self.store, limits),
            "tracing": self._tracing(),
        }

    def _tracing(self) -> "Tracing | None":
        if self.otel is None:
            if self.otel_sample is not None or self.otel_content:
                raise ValueError("--otel-sample and --otel-content need --otel ADDRESS")
            return None
        from dsv4.server.accounts.tracing import Tracing

        return Tracing.to(self.otel, share=self.otel_sample, content=self.otel_content)


def read_keys(file: Path | None, variable: str) -> "Keys":
    """The keys of a file and of the environment. Raises FileNotFoundError or ValueError naming what is wrong."""
    from dsv4.server import Keys

    own = Keys.load(file) if file is not None else Keys()
    more = Keys.parse(variable.split(","), KEYS_VARIABLE, unnamed="env")
    both = Keys((*own.entries, *more.entries), {**own.limits, **more.limits}, own.admins | more.admins)
    return both.checked(f"{file} and {KEYS_VARIABLE}")
