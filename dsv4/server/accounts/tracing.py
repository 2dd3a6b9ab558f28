"""Spans for OpenTelemetry, off unless a server is given a `Tracing`. Names and attributes are those of the semantic
conventions for generative AI (`gen_ai.*`, in development, as of November 2026); what they lack is named `dsv4.*`.

The packages (extra `otel`) are imported when a `Tracing` is made. Spans are written by a thread of their own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dsv4.observe import log

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider  # pyrefly: ignore[missing-import]  (an extra)
    from opentelemetry.trace import Span  # pyrefly: ignore[missing-import]  (an extra)

    Attributes = Mapping[str, str | bool | int | float | list[str]]

PROVIDER_NAME = "dsv4"
FROM_ENVIRONMENT = "env"
TRACES_PATH = "/v1/traces"
CLOSING = 5.0  # seconds that the end of a server waits for the collector
BETWEEN_NOTES = 300.0


class ExportNotes(logging.Handler):
    """What the exporter warns of, as lines of the server's log: one in BETWEEN_NOTES seconds, with the number of those
    left out before it. The exporter itself warns at every try."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next, self._left_out = 0.0, 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        log("otel_export", warning=record.getMessage(), left_out=self._left_out)
        self._next, self._left_out = now + BETWEEN_NOTES, 0


def collector_address(endpoint: str) -> str:
    """Where spans are sent: the collector's address with the path of traces, which may be there already. Raises
    ValueError for what is no address."""
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, or half an IPv6 address
        usable = False
    if not usable or any(map(str.isspace, endpoint)):
        raise ValueError(f"--otel must be an address (http://...) or {FROM_ENVIRONMENT}, got {endpoint!r:.80}")
    return endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH


class Tracing:
    """Where the spans of a server go. content: spans hold the texts of prompts and answers too.

    Times are those of `time.perf_counter`, in seconds.
    """

    def __init__(self, provider: TracerProvider, *, content: bool = False) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # pyrefly: ignore[missing-import]  (an extra)

        self.content = content
        self._provider = provider
        self._tracer = provider.get_tracer(PROVIDER_NAME)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str, *, share: float | None = None, content: bool = False) -> Tracing:
        """Spans to an OTLP collector over HTTP. endpoint: its address (http://127.0.0.1:4318), or "env": the variables
        OTEL_EXPORTER_OTLP_*. share: of the traces that begin here and are kept; None = as OTEL_TRACES_SAMPLER says. A
        trace that a client began is kept if the client keeps it.

        Raises ValueError for an address that is none, a share outside (0, 1], or missing packages.
        """
        address = None if endpoint == FROM_ENVIRONMENT else collector_address(endpoint)
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"--otel-sample must be in (0, 1], got {share}")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # pyrefly: ignore[missing-import]  (an extra)
            from opentelemetry.sdk.resources import Resource  # pyrefly: ignore[missing-import]  (an extra)
            from opentelemetry.sdk.trace import TracerProvider  # pyrefly: ignore[missing-import]  (an extra)
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # pyrefly: ignore[missing-import]  (an extra)
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # pyrefly: ignore[missing-import]  (an extra)
        except ImportError as error:
            raise ValueError(f"--otel needs the extra otel: pip install 'dsv4[otel]' ({error})") from error
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        provider = TracerProvider(
            resource=Resource.create({} if named else {"service.name": PROVIDER_NAME}),
            sampler=None if share is None else ParentBasedTraceIdRatio(share),
        )
        logger = logging.getLogger("opentelemetry")
        logger.handlers[:] = [ExportNotes()]
        logger.propagate = False
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address)))
        return cls(provider, content=content)

    def begin(self, name: str, attributes: Attributes, headers: Mapping[str, str], began: float) -> Span | None:
        """The span of a request, as a part of the client's trace if its headers name one (`traceparent`); None if this
        trace is not kept."""
        from opentelemetry.trace import SpanKind  # pyrefly: ignore[missing-import]  (an extra)

        span = self._tracer.start_span(
            name,
            self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=epoch(began),
        )
        return span if span.is_recording() else None

    def part(self, whole: Span, name: str, began: float, ended: float, attributes: Attributes | None = None) -> None:
        """A finished part of a request."""
        from opentelemetry.trace import set_span_in_context  # pyrefly: ignore[missing-import]  (an extra)

        context = set_span_in_context(whole)
        self._tracer.start_span(name, context, attributes=attributes, start_time=epoch(began)).end(epoch(ended))

    def end(self, span: Span, attributes: Attributes, ended: float, error: str | None = None) -> None:
        """The end of a request. error: its kind, None if there was none."""
        from opentelemetry.trace import StatusCode  # pyrefly: ignore[missing-import]  (an extra)

        span.set_attributes(attributes)
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR)
        span.end(epoch(ended))

    @contextmanager
    def tool(self, name: str, headers: Mapping[str, str]) -> Iterator[None]:
        """A span around a tool that this server runs."""
        began, kind = time.perf_counter(), {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
        span = self.begin(f"execute_tool {name}", kind, headers, began)
        error: str | None = "abort"
        try:
            yield
            error = None
        finally:
            if span is not None:
                self.end(span, {}, time.perf_counter(), error)

    def close(self) -> None:
        """Send what is left, within CLOSING seconds: a collector that does not answer must not hold up the server's
        end. Spans that come later are lost."""
        closing = Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSING)


def epoch(seconds: float) -> int:
    """Nanoseconds since 1970 of a time of `time.perf_counter`."""
    return time.time_ns() - int(1e9 * (time.perf_counter() - seconds))
