"""One endpoint of the benchmark: what it can do, and one timed request to it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv4.bench.serving.text import TokenCount, block_text
from dsv4.verify.endpoint import Endpoint, RefusedError, TimeUp, UnreachableError, error_text
from dsv4.verify.survey import QUIET, list_models, user
from dsv4.workload.timing import Timing

USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
# fields that not every server takes: each is left out where it is refused, and the report says so
OPTIONAL: tuple[tuple[dict[str, Any], str], ...] = (
    (USAGE, "`stream_options` is refused: it may report no usage"),
    ({"ignore_eos": True}, "`ignore_eos` is refused: answers may be shorter than asked for"),
    (QUIET, "the switches of thinking are refused: answers may begin with reasoning"),
)
_FEW, _MANY = 64, 320  # words of the two prompts that measure tokens


@dataclass(slots=True)
class BenchTarget:
    """fields: of each request, as the endpoint takes them. warnings: what it does not tell or do."""

    endpoint: Endpoint
    name: str
    measure: TokenCount = TokenCount()  # noqa: RUF009 (frozen)
    fields: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def survey(self, extra: Mapping[str, Any], salt: str) -> None:
        """Find the model's name, the fields that the endpoint takes, and the tokens of a word. Raises RefusedError and
        UnreachableError where it answers no plain chat completion."""
        if not self.endpoint.model:
            list_models(self.endpoint)
        self.fields = {"temperature": 0, **extra}
        for fields, refused in OPTIONAL:
            self._try(fields, refused)
        few, many = (
            self.ask(user(block_text(salt, f"measure-{count}", count)), 2, 0.0, time.monotonic() + 600)
            for count in (_FEW, _MANY)
        )
        for timing in (few, many):
            if timing.error:
                raise UnreachableError(f"{self.endpoint.url} does not answer: {timing.error}")
        if few.prompt is None or many.prompt is None:
            self.warnings.append("tokens of prompts are not reported: lengths are estimates")
        elif many.prompt > few.prompt:
            per_word = (many.prompt - few.prompt) / (_MANY - _FEW)
            self.measure = TokenCount(per_word, max(0, round(few.prompt - per_word * _FEW)))
        if few.cached is None and many.cached is None:
            self.warnings.append("cached tokens are not reported: there is no hit rate")
        if few.generated is None:
            self.warnings.append("tokens of answers are not reported: one is counted for each event")

    def _try(self, fields: Mapping[str, Any], refused: str) -> None:
        """Keep the fields if a short request with them is answered."""
        body = {"messages": user("Say hello."), "max_tokens": 1, "stream": True, **self.fields}
        try:
            for _ in self.endpoint.events({**body, **fields}):
                pass
        except RefusedError:
            for _ in self.endpoint.events(body):  # without them it must work, else the endpoint cannot be measured
                pass
            self.warnings.append(refused)
            return
        self.fields |= fields

    def ask(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tokens: int,
        due: float,
        until: float,
        said: list[str] | None = None,
    ) -> Timing:
        """Send one request and time its stream; a fault of the endpoint becomes the timing's error. due: when it was
        to be sent, 0 = now. until: when the answer is cut. said: gets the texts of the answer. Times are of
        time.monotonic."""
        sent = time.monotonic()
        timing = Timing(due or sent, sent, wanted=tokens)
        body = {"messages": list(conversation), "max_tokens": tokens, "stream": True, **self.fields}
        try:
            for data in self.endpoint.events(body, until):
                _take(timing, data, time.monotonic(), said)
        except TimeUp:
            timing.unfinished = True
        except RefusedError as error:
            timing.error = f"status {error.status}"
        except UnreachableError:
            timing.error = "connection lost"
        timing.end = time.monotonic() if timing.error or not timing.arrivals else timing.arrivals[-1]
        if not (timing.error or timing.unfinished or timing.arrivals):
            timing.error = "empty answer"
        return timing


def _take(timing: Timing, data: str, now: float, said: list[str] | None) -> None:
    """Add one event to a timing."""
    if data == "[DONE]":
        return
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        timing.error = timing.error or "an event is no JSON"
        return
    if not isinstance(chunk, dict):
        timing.error = timing.error or "an event is no part of a chat completion"
        return
    if "error" in chunk:
        timing.error = f"error in the stream: {error_text(chunk)[:60]}"
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        timing.prompt, timing.generated = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        timing.cached = _count(cached if cached is not None else usage.get("prompt_cache_hit_tokens"))
    choices = chunk.get("choices") or []
    known = choices if isinstance(choices, list) else [None]
    deltas = [choice.get("delta") or {} for choice in known if isinstance(choice, dict)]
    if len(deltas) < len(known) or not all(isinstance(delta, dict) for delta in deltas):
        timing.error = timing.error or "an event is no part of a chat completion"
        return
    for delta in deltas:
        text = delta.get("content") or ""
        if text or delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls"):
            timing.arrivals.append(now)
        if isinstance(text, str) and text and said is not None:
            said.append(text)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
