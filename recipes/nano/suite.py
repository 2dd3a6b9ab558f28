"""The bundled model's own abilities as a suite of `dsv4 eval`: `dsv4 eval models/nano --suite nano`.

The items are those of `recipes.nano.grading`, held out from training; `python -m recipes.nano.grade` asks the same
and also measures needles, small talk and plain English, which are no single questions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dsv4.evals.suite import Answer, Ask, Generate, Item, Message, Mode, Row, Score, Suite, Talk
from dsv4.posttraining.types import Effort
from dsv4.posttraining.verifiers import reward
from dsv4.verify.answer import Call
from recipes.nano.grading.dialogue import LIMITS, Turn, request_parts
from recipes.nano.grading.plan import Plan
from recipes.nano.grading.tools import play
from recipes.nano.items.item import Item as Task
from recipes.nano.items.mix import prompt_of


def _rows(wanted: Generate) -> Iterator[Row]:
    """Items of every ability that is judged by one answer."""
    defaults = Plan()
    single = [ability for ability in defaults.abilities() if ability.samples == 1]
    each = 2 if wanted.small else wanted.each(len(single), defaults.items)
    plan = Plan(items=each, seed=defaults.seed + wanted.seed)
    for ability in single:
        for number, task in enumerate(plan.draw(ability)):
            yield {"id": f"{ability.name}-{number}", "ability": ability.name, "play": ability.play, **asdict(task)}


def _task(row: Mapping[str, Any]) -> Task:
    fields = {name: row[name] for name in Task.__dataclass_fields__}
    return Task(**{**fields, "messages": tuple(fields["messages"]), "tools": tuple(fields["tools"])})


def _item(row: Row, ask: Ask) -> Item:
    task = _task(row)
    messages, tools, field = request_parts(prompt_of(task))
    return Item(
        row["id"],
        tuple(messages),
        task.answer,
        row["ability"],
        tools=tuple(tools),
        fields={"task": field} if field else {},
        data=dict(row),
    )


def _score(item: Item, answer: Answer) -> Score:
    """By the verifier of the item; an answer that was cut, or is still a call, is wrong."""
    whole = answer.finish != "length" and not answer.calls
    return Score(reward(item.data["verifier"], answer.content, item.target) if whole else 0.0, answer.content)


async def _play(item: Item, talk: Talk) -> Answer:
    if item.data["play"] != "tools":
        return await talk(item.messages, item.tools)
    dialogue = _Conversation(item, talk)
    await play(_task(item.data), dialogue)
    return dialogue.last


class _Conversation:
    """The `Dialogue` of `recipes.nano.grading` over a suite's talk."""

    def __init__(self, item: Item, talk: Talk) -> None:
        first = item.data["messages"][0]
        system = first["content"] if first["role"] == "system" else ""
        self._messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self._tools, self._talk = tuple(item.data["tools"]), talk
        self.last = Answer()

    def say(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})

    async def answer(self) -> Turn:
        self.last = answer = await self._talk(self._messages, self._tools)
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
        message = {"role": "assistant", "content": answer.content, "reasoning_content": answer.reasoning}
        self._messages.append(message | ({"tool_calls": calls} if calls else {}))
        tokens = answer.count("completion_tokens") or 0
        return Turn(answer.content, answer.reasoning, answer.calls, tokens, answer.finish == "length")

    def results(self, results: Sequence[tuple[Call, str]]) -> None:
        self._messages += [{"role": "tool", "tool_call_id": call.id, "content": text} for call, text in results]


SUITE = Suite(
    name="nano",
    about="held-out items of what the bundled model was trained on",
    item=_item,
    score=_score,
    generate=_rows,
    play=_play,
    temperature=0.0,
    max_tokens={mode: LIMITS[Effort(mode.value)] for mode in Mode},
)
