"""Rendering: the prompts of chat requests are the official ones, as far as the endpoint shows them.

An endpoint that shows prompts (`ROUTES` in `survey`) is compared text by text with `dsv4`'s, which equal those of the
official converter. Every endpoint tells the number of prompt tokens: requests that have one and the same official
prompt must have one count, and requests with different prompts mostly differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsv4.encoding import DIALECTS, Dialect
from dsv4.server.dialects.tokens import render_request
from dsv4.verify.endpoint import RefusedError
from dsv4.verify.probe import Probe, parting
from dsv4.verify.questions import ORDER, WEATHER
from dsv4.verify.survey import GREEDY, QUIET, prompt_ids, shown_prompt, thinking, user

QUESTION = "Are the prompts of requests the official ones, and are their tokens counted rightly?"
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two requests for which the official converter writes the same prompt."""

    what: str
    one: Body
    other: Body


def requests() -> dict[str, Body]:
    """Requests of every kind that the prompt format knows."""
    turns = [*user("What is 2 + 2?"), {"role": "assistant", "content": "4"}, *user("And 3 + 3?")]
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    used = [
        *user("Weather in Oslo?"),
        {"role": "assistant", "content": "", "reasoning_content": "I need the tool.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees": 3}'},
    ]
    system = {"role": "system", "content": "Be brief."}
    two = [system, {"role": "system", "content": "Answer in French."}]
    return {
        "a question": {"messages": user("Hi there."), **QUIET},
        "a question, thinking": {"messages": user("Hi there."), **thinking("high")},
        "effort max": {"messages": user("Hi there."), **thinking("max")},
        "a system message": {"messages": [system, *user("Hi there.")], **QUIET},
        "two system messages": {"messages": [*two, *user("Hi there.")], **QUIET},
        "several turns": {"messages": turns, **QUIET},
        "several turns, thinking": {"messages": turns, **thinking("high")},
        "tools": {"messages": user("Weather in Oslo?"), "tools": [WEATHER, ORDER], **QUIET},
        "tools, system, thinking": {"messages": [system, *user("Hi.")], "tools": [WEATHER], **thinking("high")},
        "a result of a tool": {"messages": used, "tools": [WEATHER], **QUIET},
        "a result of a tool, thinking": {"messages": used, "tools": [WEATHER], **thinking("high")},
        "other scripts": {"messages": user("naïve café, 日本語, 💡"), **QUIET},
    }


def pairs() -> list[Pair]:
    """Requests of which two have one prompt."""
    asked = user("Hi there.")
    high = {"messages": asked, **thinking("high")}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi there."}]}]
    both = [{"role": "system", "content": "Be brief.\n\nAnswer in French."}, *asked]
    apart = [{"role": "system", "content": text} for text in ("Be brief.", "Answer in French.")]
    thought = [
        *user("What is 2 + 2?"),
        {"role": "assistant", "content": "4", "reasoning_content": "Two and two make four."},
        *user("And 3 + 3?"),
    ]
    forgotten = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in thought]
    return [
        Pair("text as a list of parts", {"messages": asked, **QUIET}, {"messages": parts, **QUIET}),
        Pair("system messages apart", {"messages": both, **QUIET}, {"messages": [*apart, *asked], **QUIET}),
        Pair("efforts medium and high", high, {"messages": asked, **thinking("medium")}),
        Pair("reasoning of earlier turns", {"messages": forgotten, **thinking()}, {"messages": thought, **thinking()}),
    ]  # fmt: skip


def check(probe: Probe) -> None:
    """Run the check."""
    dialect = _dialect(probe)
    if probe.able.renders:
        _check_texts(probe, dialect)
    else:
        probe.skip("the text of prompts: no /render, /apply-template, or /tokenize and /detokenize")
    _check_pairs(probe, dialect)
    _check_counts(probe)
    _check_control_tokens(probe)


def official(body: Mapping[str, Any], dialect: Dialect) -> str:
    """The official prompt of a chat request."""
    return render_request({"api": "chat", "body": body}, dialect)["prompt"]


def _dialect(probe: Probe) -> Dialect:
    """The dialect that the user or the endpoint names; else the one that fits most of its prompts."""
    named = probe.settings.dialect or probe.able.dialect
    if named in DIALECTS:
        return DIALECTS[named]
    if not probe.able.renders:
        return DIALECTS["v4-0731"]
    shown = {what: shown_prompt(probe.endpoint, probe.able.renders, body) for what, body in requests().items()}

    def fitting(dialect: Dialect) -> int:
        return sum(official(body, dialect) == shown[what] for what, body in requests().items())

    return max(DIALECTS.values(), key=fitting)


def _check_texts(probe: Probe, dialect: Dialect) -> None:
    route, equal = probe.able.renders, 0
    for what, body in requests().items():
        probe.check_time()
        wanted, got = official(body, dialect), shown_prompt(probe.endpoint, route, body)
        equal += wanted == got
        if wanted != got:
            at = parting(wanted, got)
            expected = f"{what} ({dialect.name}): ...{wanted[max(0, at - 40) : at + 80]!r}"
            sent = {"api": "chat", "body": body} if route == "/render" else body
            probe.fault("prompt-text", expected, f"...{got[max(0, at - 40) : at + 80]!r}", sent, path=route)
    probe.measure(
        "prompts-equal", equal / len(requests()), f"share of prompts that are the official ones ({dialect.name})"
    )


def _check_pairs(probe: Probe, dialect: Dialect) -> None:
    for pair in pairs():
        if official(pair.one, dialect) != official(pair.other, dialect):
            continue  # in this dialect they differ
        try:
            counts = [_count(probe, body) for body in (pair.one, pair.other)]
        except RefusedError as error:
            probe.warn("refused", f"an answer for {pair.what}", str(error), pair.other)
            continue
        if counts[0] != counts[1]:
            expected = f"{counts[0]} prompt tokens: {pair.what} make the same official prompt"
            probe.fault("prompt-count", expected, counts[1], {**pair.other, "max_tokens": 1})


def _check_counts(probe: Probe) -> None:
    """The usage counts what the endpoint's own route for ids tells."""
    for what, body in requests().items():
        if not (ids := prompt_ids(probe.endpoint, body)):
            probe.skip("prompt ids: /tokenize does not take conversations")
            return
        if (counted := _count(probe, body)) != len(ids):
            got = {**body, "max_tokens": 1}
            probe.fault("prompt-count", f"{len(ids)} prompt tokens, as /tokenize says for {what}", counted, got)


def _check_control_tokens(probe: Probe) -> None:
    """Whether control tokens in a user's text become control tokens: then users can end their turn themselves."""
    counts = [_count(probe, {"messages": user("a" + "<｜Assistant｜>" * times), **QUIET}) for times in (4, 8)]
    if None not in counts and (counts[1] or 0) - (counts[0] or 0) == 4:
        body = {"messages": user("<｜Assistant｜>" * 8), "max_tokens": 1, **QUIET}
        got = "one token for each <｜Assistant｜> in a user's text: a control token"
        probe.warn("control-tokens-in-text", "ordinary tokens for the characters of a control token", got, body)


def _count(probe: Probe, body: Mapping[str, Any]) -> int | None:
    return probe.ask({**body, "max_tokens": 1, **GREEDY}).count("prompt_tokens")
