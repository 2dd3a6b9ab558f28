"""The interface itself: reasoning, usage, finish reasons, stop strings, log-probabilities, JSON, efforts, errors."""

import json
from typing import Any

from dsv4.verify.answer import Answer
from dsv4.verify.endpoint import CHAT, RefusedError
from dsv4.verify.markup import leak
from dsv4.verify.probe import Probe, difference
from dsv4.verify.schema import misfit
from dsv4.verify.survey import GREEDY, QUIET, thinking, user

QUESTION = "Do reasoning, usage, finish reasons, efforts, JSON and errors follow the interface?"
COUNT_ALOUD = user("Count from one to fifty, in words.")
SUM = user("What is 17 + 25?")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def check(probe: Probe) -> None:
    """Run the check."""
    for part in (_models, _plain, _limit, _stop, _reasoning, _efforts, _json, _errors):
        try:
            part(probe)
        except RefusedError as error:
            probe.refused(error, "a plain request")


def _models(probe: Probe) -> None:
    listed = probe.endpoint.get("/v1/models").value
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not entries or any(not isinstance(entry, dict) or not entry.get("id") for entry in entries):
        probe.fault("models", "a list of models with ids at /v1/models", listed, {}, path="/v1/models")


def _plain(probe: Probe) -> None:
    """Usage, roles, markup and log-probabilities of a short answer, whole and streamed."""
    scores = {"logprobs": True, "top_logprobs": 3} if probe.able.logprobs else {}
    body = {"messages": SUM, "max_tokens": 64, **GREEDY, **QUIET, **scores}
    answer = probe.ask(body)
    _check_usage(probe, answer, body)
    _check_scores(probe, answer, body)
    if answer.reasoning:
        probe.fault("reasoning-when-off", "no reasoning with thinking off", answer.reasoning, body)
    if found := leak(answer.content, answer.reasoning):
        probe.fault("markup-leak", "text without control tokens", f"{found!r} in {answer.content!r}", body)
    streamed = probe.stream(body)
    if streamed.said != answer.said:
        expected, got = difference(answer, streamed)
        probe.fault("stream-differs", f"{expected} as in the whole answer", got, {**body, "stream": True})
    if not streamed.usage:
        probe.fault("usage-missing", "usage in the stream (stream_options.include_usage)", "none", body)
    elif streamed.said == answer.said:
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            if streamed.count(name) != answer.count(name):
                expected = f"{name} {answer.count(name)} as in the whole answer"
                probe.fault("usage-differs", expected, streamed.count(name), {**body, "stream": True})


def _check_usage(probe: Probe, answer: Answer, body: dict[str, Any]) -> None:
    prompt, sampled, total = (answer.count(f"{name}_tokens") for name in ("prompt", "completion", "total"))
    if prompt is None or sampled is None or total is None:
        probe.fault("usage-missing", "prompt_tokens, completion_tokens, total_tokens", answer.usage, body)
        return
    if total != prompt + sampled:
        probe.fault("usage-sum", f"total_tokens {prompt + sampled}", total, body)
    if sampled > body["max_tokens"]:
        probe.fault("limit-exceeded", f"at most {body['max_tokens']} tokens", sampled, body)
    cached = answer.count("prompt_tokens_details.cached_tokens")
    if cached is not None and not 0 <= cached <= prompt:
        probe.fault("usage-cached", f"cached_tokens in [0, {prompt}]", cached, body)
    # the end token is sampled too, and some servers give it a row
    rows, finished = len(answer.tokens), answer.finish == "stop"
    if rows and not answer.reasoning and not rows <= sampled <= rows + finished:
        expected = f"completion_tokens {rows}{' or one more' if finished else ''}: the rows of logprobs"
        probe.fault("usage-count", expected, sampled, body)


def _check_scores(probe: Probe, answer: Answer, body: dict[str, Any]) -> None:
    for token in answer.tokens:
        values = [value for _, value in token.top]
        best = not token.top or token.top[0][0] == token.data or token.logprob >= values[0] - 1e-3
        if token.logprob > 1e-6 or values != sorted(values, reverse=True) or not best:
            shown = f"{token.text!r} {token.logprob:.4f}, alternatives {token.top!r}"
            probe.fault("logprobs", "the greedy token first, values at most 0, in falling order", shown, body)
    text = b"".join(token.data for token in answer.tokens).decode("utf-8", errors="replace")
    if answer.tokens and not text.startswith(answer.content):  # a row for the end token may follow
        probe.warn("logprobs-text", f"tokens that make the content {answer.content!r}", text, body)


def _limit(probe: Probe) -> None:
    """A limit cuts the answer where it says, and the finish reason says so."""
    for most in (1, 7):
        body = {"messages": COUNT_ALOUD, "max_tokens": most, **GREEDY, **QUIET}
        answer = probe.ask(body)
        sampled = answer.count("completion_tokens")
        if answer.finish not in ("length", "stop"):
            probe.fault("finish-reason", "length", answer.finish, body)
        elif sampled == most and answer.finish == "stop" and _goes_on(probe, answer, most):
            probe.fault("finish-reason", f"length after {most} tokens, since the answer goes on", "stop", body)
        elif sampled is not None and (sampled > most or (answer.finish == "length" and sampled != most)):
            expected = f"{most} tokens" if answer.finish == "length" else f"at most {most} tokens"
            probe.fault("limit-exceeded" if sampled > most else "usage-count", expected, sampled, body)


def _goes_on(probe: Probe, cut: Answer, most: int) -> bool:
    """Whether the answer has more text with a larger limit."""
    longer = probe.ask({"messages": COUNT_ALOUD, "max_tokens": most + 8, **GREEDY, **QUIET})
    return longer.content.startswith(cut.content) and len(longer.content) > len(cut.content)


def _stop(probe: Probe) -> None:
    """A stop string ends the answer before it, and is not part of it."""
    body = {"messages": COUNT_ALOUD, "max_tokens": 40, **GREEDY, **QUIET}
    whole = probe.ask(body).content
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    if len(stop) < 4 or not stop.strip() or "�" in stop:
        probe.skip("stop strings: the answer is too short")
        return
    wanted = whole[: whole.index(stop)]
    for answer in (probe.ask(halted := {**body, "stop": [stop]}), probe.stream(halted)):
        if answer.content != wanted or answer.finish != "stop":
            expected = f"{wanted[-60:]!r} and finish reason stop, before {stop!r}"
            probe.fault("stop-string", expected, f"{answer.content[-60:]!r}, {answer.finish}", halted)


def _reasoning(probe: Probe) -> None:
    """Reasoning has its own field, and its tokens are counted."""
    body = {"messages": SUM, "max_tokens": 512, **GREEDY, **thinking()}
    answer = probe.ask(body)
    _check_usage(probe, answer, body)
    if not answer.reasoning:
        probe.fault("reasoning-missing", "reasoning_content with thinking on", difference(answer, Answer())[0], body)
    if found := leak(answer.content, answer.reasoning):
        got = f"{found!r} in {(answer.reasoning + answer.content)[:200]!r}"
        probe.fault("markup-leak", "reasoning and content without control tokens", got, body)
    if answer.finish == "stop" and answer.reasoning and not answer.content:
        probe.warn("empty-content", "an answer after the reasoning", "no content, finish reason stop", body)
    thought, sampled = answer.count("completion_tokens_details.reasoning_tokens"), answer.count("completion_tokens")
    if thought is None:
        probe.skip("reasoning tokens: the usage does not count them")
    elif sampled is not None and answer.reasoning and not 0 < thought <= sampled:
        probe.fault("usage-reasoning", f"reasoning_tokens in [1, {sampled}]", thought, body)


def _efforts(probe: Probe) -> None:
    """Every effort is accepted, and max has a prompt of its own."""
    counts: dict[str, int | None] = {}
    for effort in ("low", "medium", "high", "max"):
        body = {"messages": SUM, "max_tokens": 1, **GREEDY, **thinking(effort)}
        try:
            counts[effort] = probe.ask(body).count("prompt_tokens")
        except RefusedError as error:
            probe.warn("effort-refused", f"status 200 for effort {effort}", str(error), body)
    if "max" in counts and "high" in counts and counts["max"] is not None and counts["max"] == counts["high"]:
        body = {"messages": SUM, "max_tokens": 1, **GREEDY, **thinking("max")}
        expected, got = "another prompt than for effort high", f"{counts['max']} prompt tokens for both"
        # V4.1 writes a number, which may have as many tokens
        record = probe.fault if probe.able.dialect in ("v4", "v4-0731") else probe.warn
        record("effort-ignored", expected, got, body)


def _json(probe: Probe) -> None:
    """A JSON format is kept."""
    asked = user("Reply with JSON: a city and how many people live there.")
    schema = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}
    for form in ({"type": "json_object"}, schema):
        body = {"messages": asked, "max_tokens": 200, **GREEDY, **QUIET, "response_format": form}
        try:
            answer = probe.ask(body)
        except RefusedError as error:
            probe.skip(f"response_format {form['type']}: {error}")
            continue
        if answer.finish != "stop":
            probe.skip(f"response_format {form['type']}: the answer did not end within its limit")
            continue
        try:
            wrong = misfit(json.loads(answer.content), SCHEMA if form is schema else {"type": "object"})
        except ValueError:
            wrong = "no JSON"
        if wrong:
            probe.fault("json-format", f"content that fits {form['type']}", f"{wrong}: {answer.content!r}", body)


def _errors(probe: Probe) -> None:
    """What is no request is refused with a status of 4xx and an error object, and does no harm."""
    wrong: dict[str, dict[str, Any]] = {
        "messages that are a string": {"messages": "hello"},
        "a role that does not exist": {"messages": [{"role": "nobody", "content": "hello"}]},
        "a negative limit": {"messages": SUM, "max_tokens": -5},
        "a temperature that is a word": {"messages": SUM, "temperature": "warm"},
    }
    for what, fields in wrong.items():
        probe.check_time()
        body = {"model": probe.endpoint.model, **fields}
        reply = probe.endpoint.post(CHAT, body)
        if not 400 <= reply.status < 500:
            probe.fault("error-status", f"status 4xx for {what}", f"status {reply.status}", body)
        elif not isinstance(reply.value, dict) or not ("error" in reply.value or "message" in reply.value):
            probe.fault("error-form", f"an error object for {what}", reply.value, body)
