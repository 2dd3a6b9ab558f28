"""Turns the prepared answer of any dialect into an HTTP response, whole or as a stream of events."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dsv4.observe import log
from dsv4.server.backend.models import DEPRECATED, RETIRED, THINK_MAX_CONTEXT
from dsv4.server.dialects.run import Run
from dsv4.server.dialects.spans import AnswerSpans
from dsv4.server.wire.errors import ApiError
from dsv4.server.wire.failures import as_api_error, error_body
from dsv4.server.wire.names import short_name
from dsv4.server.wire.response import EventStream, PatientResponse, race_disconnect


async def respond(request: Request, run: Run) -> Response:
    """The response of a run, whole or streamed. Raises ApiError if the engine refuses the request at once."""
    job = run.job
    request.state.report = run.report
    seconds = job.backend.settings.keep_alive
    model = job.request.model
    if (tracing := job.backend.tracing) is not None:
        for each in run.jobs:
            each.spans = AnswerSpans.begin(tracing, each, request.headers, streaming=run.streaming)
    headers = {}
    if model in DEPRECATED:
        headers["deprecation"] = RETIRED
        log("deprecated_model", model=short_name(model), id=job.id)
    context = job.backend.generator.context_length
    if job.request.effort == "max" and context < THINK_MAX_CONTEXT:
        headers["warning"] = (
            f'299 - "effort max is made for a context of {THINK_MAX_CONTEXT} tokens, this has {context}"'
        )
        log("short_context_for_max_effort", context=context, recommended=THINK_MAX_CONTEXT, id=job.id)
    if run.streaming:
        await race_disconnect(request.receive, job.begin())
        response: Response = EventStream(guarded(run), keep_alive=run.keep_alive, seconds=seconds, closing=run.close)
    else:
        response = patient(request, run.complete(), seconds)
    response.raw_headers += [(name.encode(), value.encode()) for name, value in headers.items()]
    return response


def patient(request: Request, work: Coroutine[Any, Any, object], seconds: float) -> Response:
    """The result of slow work as JSON; an error after the head was sent becomes the body."""

    def failed(error: Exception) -> object:
        return error_body(as_api_error(error), request.scope)

    return PatientResponse(work, failed, seconds)


async def guarded(run: Run) -> AsyncGenerator[bytes, None]:
    """The stream of `run`. A failure becomes its last event, because the status line is already sent."""
    chunks = run.stream()
    try:
        async for chunk in chunks:
            yield chunk
    except ApiError as error:
        log("stream_failed", id=run.job.id, error=error.message)
        yield run.failed(error)
    except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        yield run.failed(as_api_error(error))
    finally:
        await chunks.aclose()
