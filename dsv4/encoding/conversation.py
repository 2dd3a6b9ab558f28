"""Conversations to learn from: which tokens of a prompt an assistant has said.

A conversation is what people keep in JSON lines, the form of OpenAI's chat API with the reasoning beside it:

    {"messages": [{"role": "user", "content": "2 + 3?"},
                  {"role": "assistant", "reasoning_content": "2 and 3 is 5.", "content": "5"}],
     "tools": [...], "mode": "high"}

Every answer is learned in the context in which it is given later. Without tools the reasoning of earlier answers is not
shown again, so a conversation that thinks becomes one example per answer; all others are one example.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.encoding.dialect import Dialect, served
from dsv4.encoding.messages import describe, expect_list, expect_mapping, expect_text, with_system_fields
from dsv4.encoding.render import ROLES, render_segments
from dsv4.encoding.segments import Segment

# what a line may say that is not read: another way to say something that is
INSTEAD = {"functions": "tools", "function_call": "tool_calls"}
_OF_ALL = frozenset({"role", "content", "name"})
_OF_ROLE = {
    "assistant": frozenset({"reasoning_content", "tool_calls", "learn", "weight"}),
    "tool": frozenset({"tool_call_id"}),
    "user": frozenset({"task"}),
}
_EMPTY = (None, "", [], {})


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with the answers to learn in it. answers: `Segment.said_by` of those."""

    segments: tuple[Segment, ...]
    answers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A checked conversation. effort: None where it does not think. learned: numbers of the messages to learn.
    context: how many answers are not learned though nobody said so: without reasoning in a conversation that thinks."""

    messages: tuple[dict[str, Any], ...]
    system: Mapping[str, Any]
    thinks: bool
    effort: str | None
    learned: tuple[int, ...]
    context: int

    @property
    def keeps_reasoning(self) -> bool:
        """Whether later answers see the reasoning of earlier ones."""
        return bool(self.system.get("tools"))


def read_conversation(raw: Any, dialect: Dialect) -> Conversation:
    """Check a conversation. Raises ValueError naming the field: `messages[2].content: expected a string, got None`.

    mode: "chat" (no thinking) or an effort of the dialect; `reasoning_effort` says the same, with "none" for chat. By
    default a conversation thinks if its last answer has `reasoning_content`. An answer with `learn` false or `weight` 0
    is context; so is, in a conversation that thinks, one without `reasoning_content`.
    """
    raw = expect_mapping(raw, "the line")
    _check_fields(raw)
    messages = read_messages(raw["messages"])
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError("messages: no message has the role assistant, so there is nothing to learn")
    wanted = [i for i in answers if _counts(raw["messages"][i], f"messages[{i}]")]
    effort = _effort(raw, dialect)
    thinks = "reasoning_content" in messages[answers[-1]] if effort is None else effort != "chat"
    learned = [i for i in wanted if not thinks or "reasoning_content" in messages[i]]
    if not learned:
        why = "has reasoning_content, and the mode thinks" if wanted else "is to be learned (learn, weight)"
        raise ValueError(f"messages: no answer {why}, so there is nothing to learn")
    system = {name: raw[name] for name in ("tools", "response_format") if raw.get(name)}
    return Conversation(
        messages,
        system,
        thinks,
        effort if thinks else None,
        tuple(learned),
        len(wanted) - len(learned),
    )


def read_messages(raw: Any) -> tuple[dict[str, Any], ...]:
    """Messages as the renderer takes them. Raises ValueError naming message and field."""
    _check_unicode(raw, "messages")
    messages = tuple(_message(raw, i) for i in range(len(expect_list(raw, "messages"))))
    _check_results(messages)
    return messages


def check_functions(raw: Any, inner: str = "") -> None:
    """Check function objects, each of them under the key `inner` of an object (OpenAI's tools: "function") or bare.
    Raises ValueError naming tool and field."""
    _check_unicode(raw, "tools")
    for i, function in enumerate(expect_list(raw or [], "tools")):
        where = f"tools[{i}]"
        if inner:
            function, where = expect_mapping(function, where).get(inner), f"{where}.{inner}"
        function = expect_mapping(function, where)
        expect_text(function.get("name"), f"{where}.name")
        expect_mapping(function.get("parameters") or {}, f"{where}.parameters")


def examples_of(conversation: Conversation, dialect: Dialect) -> Iterator[Example]:
    """The prompts to learn from, written as a server writes them (`served`), or as the release does where a message
    asks for a task, which the service only knows at the end. Raises ValueError naming message and field."""
    tasks = any(message.get("task") for message in conversation.messages)
    if tasks and dialect.service:
        raise ValueError(f"messages: a task inside a conversation is not known to the dialect {dialect.name}")
    form = dialect if tasks else served(dialect)
    if conversation.thinks and not conversation.keeps_reasoning:
        for answer in conversation.learned:
            yield _example(conversation, answer, (answer,), form)
    else:
        yield _example(conversation, conversation.learned[-1], conversation.learned, form)


def _example(conversation: Conversation, last: int, learned: Sequence[int], dialect: Dialect) -> Example:
    """Messages up to `last`, which is an answer."""
    messages = [dict(message) for message in conversation.messages[: last + 1]]
    for i, message in enumerate(messages):
        message["place"] = i
    # the service ends every other conversation with the header of the next answer
    messages[last]["wo_eos"] = True
    messages = with_system_fields(messages, conversation.system, dialect)
    places = {f"messages[{i}]": message.get("place") for i, message in enumerate(messages)}
    segments = render_segments(
        messages,
        "thinking" if conversation.thinks else "chat",
        drop_thinking=not conversation.keeps_reasoning,
        reasoning_effort=conversation.effort,
        dialect=dialect,
    )
    segments.append(Segment(dialect.eos, trusted=True, said_by=f"messages[{len(messages) - 1}]"))
    return Example(tuple(segments), frozenset(name for name, place in places.items() if place in learned))


def _check_fields(raw: Mapping[str, Any]) -> None:
    """What a line says beside the text of its messages."""
    if "messages" not in raw:
        keys = ", ".join(map(repr, list(raw)[:8])) or "none"
        hint = '; plain text is learned by kind = "jsonl"' if isinstance(raw.get("text"), str) else ""
        raise ValueError(f"messages: missing; the keys are {keys}{hint}")
    for name, instead in INSTEAD.items():
        if raw.get(name) not in _EMPTY:
            raise ValueError(f"{name}: is not read; write it as {instead}")
    check_functions(raw.get("tools"), "function")
    _check_unicode(raw.get("response_format"), "response_format")
    expect_mapping(raw.get("response_format") or {}, "response_format")


def _check_unicode(value: Any, where: str) -> None:
    """Raise ValueError naming the field of a text that UTF-8 cannot hold: JSON can write half a character (\\ud83d)."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: a lone surrogate at character {error.start + 1}") from None
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _check_unicode(key, f"{where}, a key")
            _check_unicode(part, f"{where}.{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _check_unicode(part, f"{where}[{i}]")


def _check_results(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for a tool's result that answers no call: results are shown in the order of their calls, so it
    would stand in the place of another one."""
    known: list[Any] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            known = [call["id"] for call in message.get("tool_calls", ())]
        elif message["role"] == "tool":
            answered, where = message["tool_call_id"], f"messages[{i}].tool_call_id"
            if answered and answered not in known and (any(known) or not known):
                calls = f"the ids are {', '.join(map(repr, known))}" if known else "there is none"
                raise ValueError(f"{where}: {answered!r} answers no call of the message before; {calls}")
            if not answered and len(known) > 1 and any(known):
                raise ValueError(f"{where}: missing, and there are {len(known)} calls before it")


def _message(messages: Sequence[Any], index: int) -> dict[str, Any]:
    """One message as the renderer takes it."""
    where = f"messages[{index}]"
    raw = expect_mapping(messages[index], where)
    role = expect_text(raw.get("role"), f"{where}.role")
    if role not in ROLES:
        raise ValueError(f"{where}.role: expected one of {', '.join(ROLES)}, got {role!r}")
    known = _OF_ALL | _OF_ROLE.get(role, frozenset())
    for name, value in raw.items():
        if name not in known and value not in _EMPTY:
            hint = f"; write it as {INSTEAD[name]}" if name in INSTEAD else ""
            raise ValueError(f"{where}.{name}: a message of the role {role} has no such field{hint}")
    found: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": _content(raw, where)}
    if role == "assistant":
        if raw.get("reasoning_content") is not None:
            found["reasoning_content"] = expect_text(raw["reasoning_content"], f"{where}.reasoning_content")
        if raw.get("tool_calls"):
            found["tool_calls"] = _calls(raw["tool_calls"], f"{where}.tool_calls")
    if role == "tool":
        found["tool_call_id"] = expect_text(raw.get("tool_call_id") or "", f"{where}.tool_call_id")
    if role == "user" and raw.get("task") is not None:
        found["task"] = raw["task"]
    if role in ("assistant", "latest_reminder") and not (found["content"] or len(found) > 2):
        raise ValueError(f"{where}.content: empty, and there is nothing else in the message")
    return found


def _content(raw: Mapping[str, Any], where: str) -> str:
    """Text, or the texts of its parts. None is allowed beside tool calls."""
    value = raw.get("content")
    if isinstance(value, list):
        parts = [expect_mapping(part, f"{where}.content[{i}]") for i, part in enumerate(value)]
        for i, part in enumerate(parts):
            if part.get("type") != "text":
                raise ValueError(f"{where}.content[{i}].type: only text can be learned, got {part.get('type')!r}")
        return "\n\n".join(expect_text(part.get("text"), f"{where}.content[{i}].text") for i, part in enumerate(parts))
    if value is None and raw["role"] == "assistant":
        return ""
    return expect_text(value, f"{where}.content")


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Calls with arguments that are surely a JSON object: the renderer would write anything else as text."""
    found = []
    for i, call in enumerate(expect_list(calls, where)):
        place = f"{where}[{i}].function"
        function = expect_mapping(expect_mapping(call, f"{where}[{i}]").get("function"), place)
        name, arguments = expect_text(function.get("name"), f"{place}.name"), function.get("arguments")
        try:
            parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}.arguments: not valid JSON ({error})") from None
        if not isinstance(parsed, Mapping):
            raise ValueError(f"{place}.arguments: expected a JSON object, got {describe(parsed)}")
        _check_unicode(parsed, f"{place}.arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(parsed, ensure_ascii=False)
        found.append({"id": call.get("id"), "type": "function", "function": {"name": name, "arguments": text}})
    return found


def _counts(raw: Mapping[str, Any], where: str) -> bool:
    """Whether an answer is to be learned."""
    learn, weight = raw.get("learn"), raw.get("weight")
    if learn is not None and not isinstance(learn, bool):
        raise ValueError(f"{where}.learn: expected true or false, got {learn!r}")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise ValueError(f"{where}.weight: expected 0 or 1, got {weight!r}")
    if learn is not None and weight is not None and learn != bool(weight):
        raise ValueError(f"{where}.learn: is {learn}, but weight is {weight}")
    return bool(weight) if learn is None and weight is not None else learn is not False


def _effort(raw: Mapping[str, Any], dialect: Dialect) -> str | None:
    """What `mode` and `reasoning_effort` say: "chat", an effort, or nothing."""
    efforts = [name for name, _ in dialect.efforts]
    said: dict[str, str] = {}
    for name, off in (("mode", "chat"), ("reasoning_effort", "none")):
        value = raw.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or value not in (off, *efforts):
            raise ValueError(f"{name}: expected one of {', '.join((off, *efforts))}, got {value!r}")
        said[name] = "chat" if value == off else value
    if len(set(said.values())) > 1:
        raise ValueError(f"mode: is {raw['mode']!r}, but reasoning_effort is {raw['reasoning_effort']!r}")
    return next(iter(said.values()), None)
