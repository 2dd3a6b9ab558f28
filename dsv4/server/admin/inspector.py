"""One prompt looked into: which experts answered each token, which compressed entries the indexer picked, and what each
draft was worth.

The prompt is answered greedily and traced. Steps with a traced request run op by op, so the prompt and the answer are
short. A traced request has no drafts; where the engine drafts, the same answer is generated once more without a trace,
with the same tokens.
"""

import math
import uuid
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent, TokenTrace
from dsv4.server.backend import Backend
from dsv4.server.dialects.fields import json_object
from dsv4.server.dialects.tokens import token_ids
from dsv4.server.wire.errors import ApiError, invalid, operators_only, show

MOST_PROMPT, MOST_ANSWER, USUAL_ANSWER = 2048, 128, 32
TOP = 5


@dataclass(slots=True)
class _Pass:
    """One generation: the sampled tokens as events, and the trace of all positions."""

    events: list[TokenEvent] = field(default_factory=list)
    traces: list[TokenTrace] = field(default_factory=list)


def inspection(body: Any, backend: Backend, key: str) -> "Inspection":
    """The checked request: `messages` or `prompt` as for `tokenize`, and `max_tokens`. Raises ApiError."""
    if not backend.settings.keys.sees_all(key):
        raise operators_only("inspect the model")
    fields = json_object(body)
    count = fields.get("max_tokens", USUAL_ANSWER)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_ANSWER:
        raise invalid("max_tokens", f"must be a whole number in [1, {MOST_ANSWER}], got {show(count)}")
    prompt: list[int] = token_ids({**fields, "add_special_tokens": True}, backend, key)["tokens"]
    most = min(MOST_PROMPT, backend.generator.context_length - 1)
    if len(prompt) > most:
        raise invalid("prompt", f"at most {most} tokens can be inspected, got {len(prompt)}", code="too_large")
    return Inspection(backend, key, prompt, count)


@dataclass(frozen=True, slots=True)
class Inspection:
    """A prompt to be inspected."""

    backend: Backend
    key: str
    prompt: list[int]
    limit: int

    async def run(self) -> dict[str, Any]:
        """The tokens with their log-probabilities and drafts, and the choices of each position. Raises ApiError."""
        self.backend.admission.limits.admit(self.key, len(self.prompt))
        traced = await self._generate(trace=True)
        drafted = None
        if self.backend.generator.reports and (await self.backend.generator.report()).speculates:
            drafted = await self._generate(trace=False)
        answer = [event for event in traced.events if event.token is not None]
        self.backend.admission.limits.spend(self.key, len(answer))
        drafts = [] if drafted is None else [event.draft for event in drafted.events if event.token is not None]
        return {
            "prompt_tokens": len(self.prompt),
            "tokens": [
                *({"text": self._text(token), "id": token} for token in self.prompt),
                *self._answer(answer, drafts),
            ],
            "finish": traced.events[-1].finish if traced.events else None,
            "drafts": None if drafted is None else _worth(drafted.events),
            **_choices(traced.traces),
        }

    async def _generate(self, *, trace: bool) -> _Pass:
        params = SamplingParams(
            max_tokens=self.limit,
            temperature=0.0,
            stop_ids=(self.backend.tokenizer.eos_id,),
            logprobs=trace,
            top_logprobs=TOP if trace else 0,
            trace=trace,
        )
        # an owner of its own finds no prefix, so that every position is computed; and it leaves none behind
        options = RequestOptions(owner=f"inspection {uuid.uuid4()}", keep=False)
        found = _Pass()
        async with aclosing(self.backend.generator.stream(self.prompt, params, options)) as events:
            async for event in events:
                if event.finish is FinishReason.ERROR:
                    raise ApiError(500, event.error or "the engine failed", code="engine_error")
                if event.trace is not None:
                    found.traces.append(event.trace)
                found.events.append(event)
        return found

    def _answer(self, events: Iterable[TokenEvent], drafts: Sequence[int | None]) -> Iterable[dict[str, Any]]:
        for at, event in enumerate(events):
            assert event.token is not None
            told: dict[str, Any] = {"text": self._text(event.token), "id": event.token}
            if event.logprobs is not None:
                told["probability"] = _share(event.logprobs.chosen)
                told["top"] = [[self._text(token), _share(value)] for token, value in event.logprobs.top]
            draft = drafts[at] if at < len(drafts) else None
            if draft is not None:
                told["draft"] = {"text": self._text(draft), "accepted": draft == event.token}
            yield told

    def _text(self, token: int) -> str:
        return self.backend.tokenizer.decode([token])


def _share(logprob: float) -> float:
    return round(math.exp(logprob), 5)


def _worth(events: Sequence[TokenEvent]) -> dict[str, int]:
    """How many tokens were drafted and how many of these drafts were right. Without drafts each token is a step."""
    drafted = [event for event in events if event.draft is not None]
    accepted = sum(event.draft == event.token for event in drafted)
    tokens = sum(event.token is not None for event in events)
    return {"drafted": len(drafted), "accepted": accepted, "tokens": tokens, "steps": tokens - accepted}


def _choices(traces: Sequence[TokenTrace]) -> dict[str, Any]:
    """By layer, the choices of each position from `first` on: experts, and entries as ranges [from, to)."""
    if not traces:
        return {"first": 0, "experts": {}, "entries": {}}
    first = traces[0]
    return {
        "first": first.first,
        "experts": {
            str(layer): [list(row) for trace in traces for row in trace.experts[layer]] for layer in first.experts
        },
        "entries": {
            str(layer): [ranges(row) for trace in traces for row in trace.entries[layer]] for layer in first.entries
        },
    }


def ranges(numbers: Sequence[int]) -> list[list[int]]:
    """Whole numbers as ascending ranges [from, to)."""
    if isinstance(numbers, range) and numbers.step == 1:
        return [[numbers.start, numbers.stop]] if numbers else []
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, number + 1])
    return found
