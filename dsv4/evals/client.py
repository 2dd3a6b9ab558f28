"""What asks a server: chat completions as streams, so that an answer of an hour is no silence, and many at once."""

from collections.abc import Mapping
from typing import Any

from dsv4.evals.extra import needs_extra
from dsv4.evals.retries import BrokenAnswerError, Retries, Tell
from dsv4.evals.suite import Mode
from dsv4.verify.answer import Answer, StreamedAnswer
from dsv4.verify.endpoint import CHAT, Endpoint, RefusedError, UnreachableError, decoded, error_text
from dsv4.verify.survey import QUIET, thinking

with needs_extra():
    import httpx


_SHOWN = 200  # characters of what is no stream


def switches(mode: Mode) -> dict[str, Any]:
    """The fields of a request that choose a mode, in the spellings of all servers."""
    return dict(QUIET) if mode is Mode.NON_THINK else thinking(mode.value)


class Client:
    """Asks one endpoint, from any event loop."""

    def __init__(self, endpoint: Endpoint, tell: Tell = lambda text: None, silence: float = 600.0) -> None:
        """tell: shows the user that requests are sent again. silence: seconds without a byte after which the endpoint
        counts as lost."""
        headers = [(b"authorization", f"Bearer {endpoint.key}".encode())] if endpoint.key else []
        # an answer takes longer than a connection, and what stays open would outlive inspect's event loop
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.endpoint, self._retries = endpoint, Retries(endpoint.url, tell)
        self._http = httpx.AsyncClient(headers=headers, timeout=silence, limits=limits)

    async def ask(self, body: Mapping[str, Any]) -> Answer:
        """A streamed chat completion, put together, after several tries if need be. Raises RefusedError, and
        UnreachableError also where the stream ends too early or has an error in it: such an answer is no answer of the
        model."""
        return await self._retries.ask(lambda: self._asked(body))

    async def _asked(self, body: Mapping[str, Any]) -> Answer:
        url, merged = self.endpoint.url + CHAT, StreamedAnswer()
        try:
            async with self._http.stream("POST", url, json=self.endpoint.streaming(body)) as response:
                if response.status_code != 200:
                    raise RefusedError(response.status_code, error_text(decoded(await response.aread())), "")
                other, events = "", False
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        merged.take(line[5:].strip())
                        events = True
                    elif not events and len(other) < _SHOWN:
                        other += line
                if not events and other:
                    sent = response.headers.get("content-type", "no content type")
                    raise RefusedError(200, f"a stream was asked for, and this came ({sent}): {other[:_SHOWN]}", "")
        except httpx.HTTPError as error:
            raise UnreachableError(str(error) or type(error).__name__) from error
        answer = merged.answer()
        if answer.finish is None:
            raise BrokenAnswerError("; ".join(answer.problems))
        return answer
