"""Conversations with tools: one call, several at a time, one after another, an error to recover from, or none.

The block that explains tools costs hundreds of tokens, so a conversation has one to four questions with the same tools.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from recipes.nano.items import tool_kinds
from recipes.nano.items.arithmetic import make_product, make_sum
from recipes.nano.items.everyday_tools import everyday
from recipes.nano.items.facts import make_one_kind
from recipes.nano.items.item import Item, Message, draw
from recipes.nano.items.ordering import make_comparison
from recipes.nano.items.talk import answers_of, talk_about
from recipes.nano.items.tool_kinds import Tool, spoken
from recipes.nano.items.unseen_tools import unseen
from recipes.nano.items.words import NAMES, PLACES, THINGS

NOT_FOUND = "error: not found"
_KINDS = (tool_kinds.calculator, tool_kinds.lookup, tool_kinds.read_file, tool_kinds.weather)
# what no tool could answer
_CONVERSATION = (
    "greeting", "good_morning", "good_evening", "goodbye", "thanks", "praise", "how_are_you", "user_fine", "user_tired",
    "user_name", "name", "who_are_you", "which_model", "who_made_you", "how_trained", "how_big", "human", "feelings",
    "age", "joke", "yes", "no", "test", "sorry", "languages", "memory", "why_nano", "body", "smart", "danger", "family",
    "favourite", "hobby", "opinion", "riddle", "user_sad", "user_angry", "user_afraid", "user_bored", "user_birthday",
    "user_love", "laugh", "back", "wait", "welcome", "wishes", "may_ask", "insult", "cannot_do", "can_math", "can_sort",
    "can_tools", "can_read", "meaning", "good_night", "harm", "instructions", "privacy", "license", "speed",
    "who_and_what", "what_can_you_do", "example", "wrong", "unclear", "unsure", "continue", "why", "where_live",
    "other_users", "knowledge_cutoff", "dsv4", "deepseek", "chatgpt", "secret", "nickname", "newcomer", "user_tells",
    "user_hungry", "encourage", "user_crisis", "emergency", "medical", "law", "advice", "poem", "essay", "code",
    "image", "translate", "fun_fact", "count_up", "repeat",
)  # fmt: skip
# kinds of tools that may do the same for a user: while one is offered, nothing is asked for that needs another
_NEAR = (
    {"timer", "alarm", "clock", "calendar", "note"}, {"message", "phone", "note"}, {"order", "price", "stock"},
    {"table", "flight", "calendar", "distance"}, {"light", "heating"}, {"recipe", "order", "feed"},
    {"file", "files", "note"}, {"calculator", "convert", "dice"}, {"weather", "heating"},
    {"lookup", "price", "stock", "phone", "population", "grade", "distance", "recipe", "battery", "file", "files"},
)  # fmt: skip
# what a store or a file may be asked for as well
_FINDING = ("get", "find", "show", "read", "load", "fetch", "search", "check", "list")


_LONG = 0.15  # of the descriptions have another sentence
_MORE = (
    "Returns a short text.", "The result is a text or an error.", "It fails if something is missing.",
    "Takes what the user wrote.", "Gives one result for each call.", "The result may be an error.",
)  # fmt: skip


@dataclass(slots=True)
class _Chat:
    """A conversation that grows; `task`, `answer` and `deep` are of its last question. `tools` are offered in it."""

    rng: random.Random
    tools: Sequence[Tool]
    messages: list[Message] = field(default_factory=list)
    calls: int = 0
    task: str = ""
    answer: str | tuple[str, ...] = ""
    verifier: str = "contains"
    deep: str = ""
    told: dict[str, str] = field(default_factory=dict)

    def tell(self, tool: Tool, values: list[Any]) -> str:
        """What a tool returns; the same for the same call, so that a grader can tell from the item alone."""
        call = json.dumps([tool.name, values])
        return self.told.setdefault(call, tool.tell(self.rng, values))

    def ask(self, task: str, text: str) -> None:
        self.task = task
        self.messages.append({"role": "user", "content": text})

    def call(self, thought: str, *calls: tuple[Tool, list[Any], str]) -> None:
        """The assistant calls tools; each (tool, values, result) is answered."""
        made, results = [], []
        for tool, values, result in calls:
            number = f"call_{self.calls}"
            self.calls += 1
            names = [argument.name for argument in tool.arguments]
            arguments = json.dumps(dict(zip(names, values, strict=False)))
            made.append({"id": number, "type": "function", "function": {"name": tool.name, "arguments": arguments}})
            results.append({"role": "tool", "tool_call_id": number, "content": result})
        self.messages.append({"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": made})
        self.messages += results

    def say(
        self, thought: str, text: str, answer: str | tuple[str, ...] | None = None, verifier: str = "contains"
    ) -> None:
        asked = next(m["content"] for m in reversed(self.messages) if m["role"] == "user")
        self.messages.append({"role": "assistant", "content": text, "reasoning_content": thought})
        self.answer, self.verifier = text if answer is None else answer, verifier
        self.deep = f"The user asked: {asked} {thought} This answers the question."

    def item(self, level: int) -> Item:
        definitions = tuple(self._definition(tool) for tool in self.tools)
        return Item(
            "tools", self.task, tuple(self.messages), self.answer, self.verifier, definitions, deep=self.deep,
            level=level,
        )  # fmt: skip

    def _definition(self, tool: Tool) -> dict[str, Any]:
        """With one more sentence in some: descriptions may be long."""
        made = tool.definition(self.rng)
        if self.rng.random() < _LONG:
            made["function"]["description"] += f" {self.rng.choice(_MORE)}"
        return made


def _draw_values(rng: random.Random, tool: Tool) -> list[Any]:
    return [argument.draw(rng) for argument in tool.arguments]


def _said(tool: Tool, values: list[Any], out: str) -> str:
    return tool.says.format(*map(spoken, values), out=out)


def _purpose(tool: Tool, values: list[Any]) -> str:
    """A call in a thought. Several arguments stand beside their names, in the order of the schema: the call that
    follows repeats what is near, instead of names from the schema and values from the question in turn."""
    if len(values) < 2:
        return f"{tool.name} for {spoken(values[0])}" if values else tool.name
    named = (f"{argument.name} {spoken(value)}" for argument, value in zip(tool.arguments, values, strict=True))
    return f"{tool.name} for {', '.join(named)}"


def _one(chat: _Chat, tool: Tool, task: str) -> None:
    values = _draw_values(chat.rng, tool)
    out = chat.tell(tool, values)
    chat.ask(task, tool.ask(chat.rng, values))
    chat.call(f"I need {_purpose(tool, values)}.", (tool, values, out))
    chat.say(f"The tool says: {out}", _said(tool, values, out), out)


def _several(chat: _Chat, tool: Tool, other: Tool) -> None:
    """Two or three different calls at a time, with one tool or with two. The answer has every result."""
    two = not tool.arguments or chat.rng.random() < 0.4
    tools = [tool, other] if two and other is not tool else [tool] * chat.rng.randint(2, 3)
    calls: list[tuple[Tool, list[Any], str]] = []
    for one in tools:
        values = _draw_values(chat.rng, one)
        if (one, values) not in [(made, given) for made, given, _ in calls]:
            calls.append((one, values, chat.tell(one, values)))
    asks = [one.ask(chat.rng, values) for one, values, _ in calls]
    names = " and ".join(_purpose(one, values) for one, values, _ in calls)
    ended = [text if text[-1] in ".?!" else text + "." for text in asks]
    chat.ask("several", " ".join(ended) if chat.rng.random() < 0.6 else "\n".join(asks))
    chat.call(f"I need {names}.", *calls)
    said = " ".join(_said(one, values, out) for one, values, out in calls)
    chat.say("I have all results.", said, tuple(out for _, _, out in calls))


def _file_error(chat: _Chat, tool: Tool) -> None:
    """The name is wrong, and the error has the right one."""
    right = tool_kinds.file_name(chat.rng)
    wrong = chat.rng.choice((right.replace(".", "s."), right.rsplit(".")[0], "my_" + right, right[1:]))
    out = chat.tell(tool, [right])
    errors = (
        "error: no file {}, there is {}", "error: {} not found. Did you mean {}?", "error: cannot open {}, try {}",
        "error: {} does not exist, files: {}", "no such file {}. Available: {}", "error: unknown path {}, use {}",
    )  # fmt: skip
    error = chat.rng.choice(errors).format(wrong, right)
    chat.ask("error", tool.ask(chat.rng, [wrong]))
    chat.call(f"I need {tool.name} for {wrong}.", (tool, [wrong], error))
    chat.call(f"{wrong} is wrong. The right name is {right}.", (tool, [right], out))
    chat.say(f"The tool says: {out}", _said(tool, [right], out), out)


def _key_error(chat: _Chat, tool: Tool) -> None:
    """The key is not there; the error has the ones that are, or nothing helps."""
    key = chat.rng.choice(THINGS)
    wrong, out = key + "s", chat.tell(tool, [key])
    chat.ask("error", tool.ask(chat.rng, [wrong]))
    errors = ("error: unknown {}, try {}", "error: no {}, there is {}", "{} not found. Did you mean {}?")
    error = chat.rng.choice(errors)
    if chat.rng.random() < 0.7:
        chat.call(f"I need {tool.name} for {wrong}.", (tool, [wrong], error.format(wrong, key)))
        chat.call(f"{wrong} is wrong. The right name is {key}.", (tool, [key], out))
        chat.say(f"The tool says: {out}", _said(tool, [key], out), out)
    else:
        chat.call(f"I need {tool.name} for {wrong}.", (tool, [wrong], NOT_FOUND))
        chat.say("The tool has nothing.", f"I found nothing about {wrong}.")


def _chain(chat: _Chat, first: Tool, second: Tool) -> None:
    """The second call needs what the first one returned. first: lookup or file; second: weather or calculator."""
    rng = chat.rng
    if second.run is not None:
        middle = tool_kinds.sum_of(rng)
        what = tool_kinds.drawn(
            rng, "[calculate|compute|work out|evaluate] [what it says|it|the result|that sum|what is there]"
        )
    else:
        middle = rng.choice(PLACES)
        what = tool_kinds.drawn(
            rng, "[tell me|get|check|find|look up|give me] the weather [there|of that city|of that place]"
        )
    key = rng.choice(NAMES) if first.kind != "file" else tool_kinds.file_name(rng)
    source = (
        "[Look up|Find|Get|Fetch|First look up]" if first.kind != "file" else "[Read|Open|Load|Look into|First read]"
    )
    joint = rng.choice((" and", " and then", ", then", ", and then"))
    chat.ask("chain", f"{tool_kinds.drawn(rng, source)} {key}{joint} {what}.")
    chat.call(f"First I need {first.name} for {key}.", (first, [key], middle))
    out = chat.tell(second, [middle])
    chat.call(f"The tool says: {middle}. Now I need {second.name} for {middle}.", (second, [middle], out))
    chat.say(f"The tool says: {out}", _said(second, [middle], out), out)


def _no_tool(chat: _Chat) -> None:
    about = talk_about(chat.rng, chat.rng.choice(_CONVERSATION))
    asked, said = about.messages
    chat.ask("no_tool", asked["content"])
    chat.say(f"{said['reasoning_content']} No tool is needed.", said["content"], about.answer, about.verifier)


def _unfit(chat: _Chat) -> None:
    """A wish that a tool fulfils which is not offered; those that are do other things."""
    rng = chat.rng
    offered = {tool.kind for tool in chat.tools}
    taken = offered.union((tool.name for tool in chat.tools), *(kinds for kinds in _NEAR if kinds & offered))
    described = " ".join(tool.description.lower() for tool in chat.tools)
    while True:
        wished = rng.choice((tool_kinds.weather, tool_kinds.read_file, everyday, everyday, everyday, unseen))(rng)
        verb = wished.description.lower().removeprefix("to ").partition(" ")[0]
        found = verb in _FINDING and wished.kind == wished.name and offered & {"lookup", "file"}
        if not ({wished.kind, wished.name} & taken or verb in described or found):
            break
    weather = wished.kind == "weather"
    answers = answers_of("weather_without_tool" if weather else "act", "")
    chat.ask("unfit", wished.ask(rng, _draw_values(rng, wished)))
    need = "I have no weather tool." if weather else "I have no tool for that."
    names = " and ".join(tool.name for tool in chat.tools)
    fit = "does" if len(chat.tools) == 1 else "do"
    chat.say(f"{need} {names} {fit} not fit.", rng.choice(answers), answers, "one_of")


def _own_work(chat: _Chat) -> None:
    """What no tool can do, but the assistant: its thought is the same as without tools."""
    make = chat.rng.choice((make_sum, make_product, make_comparison, partial(make_one_kind, most=6, turns=1)))
    asked, said = draw(make, chat.rng).messages
    chat.ask("no_tool", asked["content"])
    chat.say(said["reasoning_content"], said["content"])


def _offer(rng: random.Random, *needed: Tool) -> list[Tool]:
    """The needed tools among one to four, in random order, no two of one name."""
    tools = list(needed)
    for _ in range(rng.choices((0, 1, 2, 3), (4, 3, 2, 1))[0]):
        other = rng.choice((*_KINDS, everyday, unseen, unseen))(rng)
        taken = {tool.name for tool in tools} | {tool.kind for tool in tools}
        if len(tools) < 4 and not {other.name, other.kind} & taken:
            tools.append(other)
    rng.shuffle(tools)
    return tools


def _more(chat: _Chat, turns: int, talk: float = 0.3) -> None:
    """Questions that come before the last one. talk: the share of small talk, which costs few tokens beside the block
    that explains tools, and is else hardly met there."""
    for _ in range(turns):
        tool = chat.rng.choice(chat.tools)
        if chat.rng.random() < talk:
            calculator = any(one.run is not None for one in chat.tools)
            if chat.rng.random() < 0.2:
                _unfit(chat)
            else:
                (_no_tool if calculator or chat.rng.random() < 0.7 else _own_work)(chat)
        elif chat.rng.random() < 0.25:
            _several(chat, tool, chat.rng.choice(chat.tools))
        else:
            _one(chat, tool, "one")


def _turns(rng: random.Random, turns: int | None) -> int:
    return (turns or rng.choices((1, 2, 3, 4), (2, 3, 3, 2))[0]) - 1


def make_known(rng: random.Random, turns: int | None = None) -> Item:
    """One call of a calculator, a store, a file reader, the weather or an everyday tool.

    turns: questions; None for 1 to 4, as below."""
    tool = rng.choice((*_KINDS, *_KINDS, everyday, everyday, everyday))(rng)
    chat = _Chat(rng, _offer(rng, tool))
    _more(chat, _turns(rng, turns))
    _one(chat, tool, "one")
    return chat.item(0)


def make_unseen(rng: random.Random, turns: int | None = None) -> Item:
    """One call of a tool with drawn names."""
    tool = unseen(rng)
    chat = _Chat(rng, _offer(rng, tool))
    _more(chat, _turns(rng, turns))
    _one(chat, tool, "unseen")
    return chat.item(1)


def make_several(rng: random.Random, turns: int | None = None) -> Item:
    """Two or three calls at a time."""
    makers = (*_KINDS, everyday, unseen)
    tool = rng.choice(makers)(rng)
    while not tool.arguments:  # nothing to ask it twice about
        tool = rng.choice(makers)(rng)
    chat = _Chat(rng, _offer(rng, tool))
    _more(chat, _turns(rng, turns))
    _several(chat, tool, rng.choice(chat.tools))
    return chat.item(1)


def make_chain(rng: random.Random, turns: int | None = None) -> Item:
    """A call whose argument is the result of the one before."""
    first = rng.choice((tool_kinds.lookup, tool_kinds.read_file))(rng)
    second = rng.choice((tool_kinds.weather, tool_kinds.calculator))(rng)
    chat = _Chat(rng, _offer(rng, first, second))
    _more(chat, _turns(rng, turns))
    _chain(chat, first, second)
    return chat.item(2)


def make_error(rng: random.Random, turns: int | None = None) -> Item:
    """An error that says how to go on."""
    files = rng.random() < 0.6
    tool = (tool_kinds.read_file if files else tool_kinds.lookup)(rng)
    chat = _Chat(rng, _offer(rng, tool))
    _more(chat, _turns(rng, turns))
    (_file_error if files else _key_error)(chat, tool)
    return chat.item(2)


def make_no_tool(rng: random.Random, turns: int | None = None) -> Item:
    """Small talk while tools are offered."""
    chat = _Chat(rng, _offer(rng, rng.choice((*_KINDS, unseen))(rng)))
    _more(chat, _turns(rng, turns) + (0 if turns else rng.randint(0, 2)), 0.7)
    _no_tool(chat)
    return chat.item(0)


def make_unfit(rng: random.Random, turns: int | None = None) -> Item:
    """A wish that none of the offered tools fulfils, as their descriptions tell."""
    chat = _Chat(rng, _offer(rng, rng.choice((*_KINDS, everyday, unseen))(rng)))
    _more(chat, _turns(rng, turns), 0.4)
    _unfit(chat)
    return chat.item(1)


def results_of(item: Item) -> list[tuple[str, dict[str, Any], str]]:
    """Every call of the item with its result: name, arguments, text."""
    calls: dict[str, tuple[str, dict[str, Any]]] = {}
    found: list[tuple[str, dict[str, Any], str]] = []
    for message in item.messages:
        for call in message.get("tool_calls") or ():
            calls[call["id"]] = call["function"]["name"], json.loads(call["function"]["arguments"])
        if message["role"] == "tool":
            found.append((*calls[message["tool_call_id"]], message["content"]))
    return found


def result_of(item: Item, name: str, arguments: dict[str, Any]) -> str:
    """What a tool of the item returns for a model's call: as in the item, or an error for any other call."""
    return recorded(results_of(item), name, arguments)


def recorded(results: Iterable[Sequence[Any]], name: str, arguments: dict[str, Any]) -> str:
    """The result of a call among those of `results_of`, or the error for a call that is not there."""
    return next((text for known, given, text in results if (known, given) == (name, arguments)), NOT_FOUND)
