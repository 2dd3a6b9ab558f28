"""Calls of tools: their form is whole, their arguments fit the schema's types, and no markup reaches the client.

Whether the model calls the right tool with the right values is a measure. What the server owes to any model is judged:
names that exist, arguments that are a JSON object, values of the type that the schema demands where the model's text
has such a value, finish reasons, choices that are kept, and strict schemas where it accepts them. Where an answer lacks
one of these because the model wrote it so, and the endpoint shows what the model wrote, that is the model's mistake.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dsv4.verify.answer import Answer, Call
from dsv4.verify.endpoint import RefusedError
from dsv4.verify.markup import leak
from dsv4.verify.model_text import ModelText, UnknownTextError, model_text, parsed_object
from dsv4.verify.probe import NotPossible, Probe, difference, near_tie
from dsv4.verify.questions import Question, questions
from dsv4.verify.schema import misfit
from dsv4.verify.survey import GREEDY, QUIET, thinking, user

QUESTION = "Are calls of tools whole, typed as their schemas say, and free of markup?"
TOKENS = 256
_INVOKED = re.compile(r'invoke name="([^"]*)"')


@dataclass(slots=True)
class _Tally:
    """What was counted over all questions. needed: questions that need a call."""

    needed: int = 0
    right: int = 0  # called where a call was needed
    wrong: int = 0  # called where none was
    calls: int = 0
    valid: int = 0
    exact: int = 0
    asked: int = 0


def check(probe: Probe) -> None:
    """Run the check. Raises NotPossible for an endpoint that refuses tools."""
    tally = _Tally()
    for question in questions():
        try:
            _ask(probe, question, tally)
        except RefusedError as error:
            if error.status >= 500 or tally.asked:
                raise
            raise NotPossible(f"the endpoint refuses tools: {error}") from None
    _measure(probe, tally)
    probe.measure("exact", tally.exact / tally.asked, f"share of {tally.asked} answers with just the right calls")
    _check_thinking(probe)
    _check_choices(probe)
    _check_strict(probe)
    _check_history(probe)
    _check_users(probe)


def _check_users(probe: Probe) -> None:
    """The questions of the user's files. A tool that is refused is no fault: the files may hold any schema. An
    endpoint that fails at one is a fault, and the others are asked."""
    tally = _Tally()
    try:
        for question in probe.settings.questions:
            try:
                _ask(probe, question, tally)
            except RefusedError as error:
                if error.status >= 500:
                    probe.refused(error, f"the question of {question.place}")
                else:
                    probe.skip(f"the question of {question.place}: {error}")
    finally:
        if tally.asked:
            _measure(probe, tally, "questions-")


def _ask(probe: Probe, question: Question, tally: _Tally) -> None:
    """One question, whole and streamed."""
    body = _body(question)
    answer = probe.ask(body)
    _judge(probe, question, answer, body)
    _count(tally, question, answer)
    streamed = probe.stream(body)
    _judge(probe, question, streamed, {**body, "stream": True})
    # a call that the limit cuts has begun in a stream, and is left out of a whole answer
    cut = answer.finish == streamed.finish == "length" and answer.content == streamed.content
    if streamed.said != answer.said and not cut:
        expected, got = difference(answer, streamed)
        tie = near_tie(answer, streamed)
        probe.fault("stream-differs", f"{expected} as in the whole answer", got, {**body, "stream": True}, tie=tie)


def _body(question: Question, **more: Any) -> dict[str, Any]:
    messages = [*question.messages] or user(question.text)
    return {"messages": messages, "tools": [*question.tools], "max_tokens": TOKENS, **GREEDY, **QUIET, **more}


def _judge(probe: Probe, question: Question, answer: Answer, body: dict[str, Any], *, strict: bool = False) -> None:
    """The contract of any answer to a request with tools."""
    blame = _Blame(probe, answer, body)
    if found := leak(answer.content, answer.reasoning, *(call.arguments for call in answer.calls)):
        text = answer.reasoning + answer.content
        names = _names(question)
        called = set(_INVOKED.findall(text))
        inside = "" if leak(text) else ", in the arguments of a call"
        expected, got = "calls in tool_calls, text without markup", f"{found!r} in {text[:300]!r}{inside}"

        def written(wrote: ModelText) -> bool:
            return bool(wrote.names - names) or any(found in arguments for _, arguments in wrote.calls)

        # no such tool exists, or the limit has cut the block: then it is no call, and some servers show it as it is
        as_text = answer.finish == "length" or bool(called and not called & names)
        code = "block-as-text" if as_text else "markup-leak"
        if not blame.is_mistake(code, expected, got, written):
            (probe.warn if as_text else probe.fault)(code, expected, got, body)
    if answer.calls and answer.finish not in ("tool_calls", "length"):
        probe.fault("finish-reason", "tool_calls, since the answer has calls", answer.finish, body)
    if answer.finish == "tool_calls" and not answer.calls:
        probe.fault("finish-reason", "a call, since the finish reason is tool_calls", answer.content, body)
    ids = [call.id for call in answer.calls]
    if "" in ids or len(set(ids)) < len(ids):
        probe.fault("call-ids", "an id of its own for each call", ids, body)
    for call in answer.calls if answer.finish != "length" else ():
        _judge_call(blame, question, call, strict=strict)


@dataclass(frozen=True)
class _Blame:
    """Tells mistakes of the model from faults of the server in one answer, whose text is asked for once."""

    probe: Probe
    answer: Answer
    body: dict[str, Any]

    def is_mistake(self, code: str, expected: str, got: str, written: Callable[[ModelText], bool]) -> bool:
        """Record a mistake of the model, and whether it is one: its text is none that the release's parser takes, or
        `written` finds the same in it. A grammar's text is not the model's alone, and is not asked for."""
        if "tool_choice" in self.body:
            return False
        wrote = self._wrote
        if isinstance(wrote, UnknownTextError):
            self.probe.skip(
                f"whether the model or the server is to blame for a wrong call, which counts as the server's: {wrote}"
            )
            return False
        if not wrote.error and not written(wrote):
            return False
        reason = f" ({wrote.error})" if wrote.error else ""
        self.probe.mistake(code, expected, f"{got}; the model wrote {wrote.text[:300]!r}{reason}", self.body)
        return True

    @cached_property
    def _wrote(self) -> ModelText | UnknownTextError:
        body = {name: value for name, value in self.body.items() if name != "stream"}
        try:
            return model_text(self.probe, body, self.answer)
        except UnknownTextError as error:
            return error


def _judge_call(blame: _Blame, question: Question, call: Call, *, strict: bool) -> None:
    probe, body = blame.probe, blame.body
    schema = _schema(question, call.name)

    def judge(code: str, expected: str, got: str, written: Callable[[ModelText], bool]) -> None:
        if not blame.is_mistake(code, expected, got, written):
            probe.fault(code, expected, got, body)

    if schema is None:
        names = sorted(_names(question))
        judge("unknown-tool", f"one of {names}", call.name, lambda wrote: call.name in wrote.names)
        return
    values = parsed_object(call.arguments)
    if values is None:
        judge(
            "arguments-json", "the text of a JSON object", call.arguments,
            lambda wrote: any(parsed_object(arguments) is None for _, arguments in wrote.calls),
        )  # fmt: skip
        return
    for name, value in values.items():
        if wanted := _quoted(value, schema.get("properties", {}).get(name, {})):
            judge(
                "argument-types", f"{name} {wanted}, as its schema says", f"{value!r}",
                lambda wrote, name=name, value=value: value in wrote.argument(call.name, name),
            )  # fmt: skip
    if strict and (wrong := misfit(values, schema)):
        probe.fault("strict-schema", "arguments that fit the strict schema", f"{wrong}: {call.arguments}", body)


def _quoted(value: Any, schema: Mapping[str, Any]) -> str:
    """The value that the schema demands, if the endpoint has sent it as text."""
    if not isinstance(value, str) or not misfit(value, schema):
        return ""
    try:
        inner = json.loads(value)
    except (ValueError, RecursionError):
        return ""
    return "" if misfit(inner, schema) else json.dumps(inner)


def _count(tally: _Tally, question: Question, answer: Answer) -> None:
    tally.asked += 1
    tally.needed += question.needs_call
    if question.needs_call:
        tally.right += bool(answer.calls)
    else:
        tally.wrong += bool(answer.calls)
    for call in answer.calls:
        schema, values = _schema(question, call.name), parsed_object(call.arguments)
        tally.calls += 1
        tally.valid += schema is not None and values is not None and not misfit(values, schema)
    made = [(call.name, parsed_object(call.arguments)) for call in answer.calls]
    tally.exact += made == [(name, arguments) for name, arguments in question.wanted]


def _measure(probe: Probe, tally: _Tally, prefix: str = "") -> None:
    if tally.needed:
        called = tally.right + tally.wrong
        precision, recall = tally.right / max(1, called), tally.right / tally.needed
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        meaning = f"calls where a call is needed and none where not (harmonic mean), {tally.asked} questions"
        probe.measure(f"{prefix}trigger-f1", f1, meaning)
    else:
        meaning = f"share of {tally.asked} answers with a call, where none is needed"
        probe.measure(f"{prefix}called", tally.wrong / tally.asked, meaning)
    valid = tally.valid / max(1, tally.calls)
    probe.measure(f"{prefix}schema-valid", valid, f"share of {tally.calls} calls that fit the schema")


def _check_thinking(probe: Probe) -> None:
    """Reasoning before a call stays reasoning."""
    for question in questions()[:3]:
        body = {**_body(question), **thinking(), "max_tokens": 4 * TOKENS}
        _judge(probe, question, probe.ask(body), body)


def _check_choices(probe: Probe) -> None:
    """tool_choice and parallel_tool_calls, where the endpoint accepts them."""
    asked = {question.kind: question for question in questions()}
    simple, several, parallel = (asked[kind] for kind in ("simple", "several tools", "parallel"))
    named = {"type": "function", "function": {"name": "get_weather"}}
    for what, question, more, least, most in (
        ("none", simple, {"tool_choice": "none"}, 0, 0),
        ("required", several, {"tool_choice": "required"}, 1, 99),
        ("a named tool", replace(several, text=simple.text), {"tool_choice": named}, 1, 99),
        ("one call at most", parallel, {"parallel_tool_calls": False}, 0, 1),
    ):
        body = _body(question, **more)
        try:
            answer = probe.ask(body)
        except RefusedError as error:
            probe.skip(f"tool_choice {what}: {error}")
            continue
        _judge(probe, question, answer, body)
        names = [call.name for call in answer.calls]
        other = what == "a named tool" and set(names) - {"get_weather"}
        if answer.finish != "length" and (other or not least <= len(names) <= most):
            expected = {"none": "no call", "required": "a call", "a named tool": "calls of get_weather"}.get(what, what)
            probe.fault("choice-ignored", expected, f"calls of {names}, finish reason {answer.finish}", body)


def _check_strict(probe: Probe) -> None:
    """Strict functions: every call fits its schema, whatever the model wants."""
    for question in (one for one in questions() if one.kind in ("types", "nested")):
        tools = tuple({**tool, "function": {**tool["function"], "strict": True}} for tool in question.tools)
        strict = replace(question, tools=tools)
        body = _body(strict, tool_choice="required")
        try:
            answer = probe.ask(body)
        except RefusedError as error:
            probe.skip(f"strict functions: {error}")
            return
        _judge(probe, strict, answer, body, strict=True)


def _check_history(probe: Probe) -> None:
    """A conversation with a call and its result is continued."""
    question = questions()[0]
    name, arguments = question.wanted[0]
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    messages = [
        *user(question.text),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "clear", "degrees": 21}'},
    ]
    body = {**_body(question), "messages": messages}
    _judge(probe, question, probe.ask(body), body)


def _schema(question: Question, name: str) -> Mapping[str, Any] | None:
    found = [tool["function"]["parameters"] for tool in question.tools if tool["function"]["name"] == name]
    return found[0] if found else None


def _names(question: Question) -> set[str]:
    return {tool["function"]["name"] for tool in question.tools}
