"""Conversations as environments: prompts from messages, tools that the policy calls, a verifier for the last answer.

The policy's answers are read by the token (`dsv4.answer`), as a server reads them, and tool results are rendered by the
chat encoding itself, so a trajectory is exactly the prompt that a server would make of the same conversation.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv4.answer import AnswerInProgress
from dsv4.encoding import ParsedCompletion, Segment, Tokenizer, render_segments, served
from dsv4.generation import FinishReason, TokenEvent
from dsv4.posttraining.environment import More, Verdict, task_field
from dsv4.posttraining.foreign import ForeignCalls, told_as_fault
from dsv4.posttraining.types import Effort, Prompt
from dsv4.posttraining.verifiers import VERIFIERS, check_expected

Message = Mapping[str, Any]
Verifier = Callable[[str, Any], float]
LONGEST_RESULT = 20_000  # characters of a tool's result that the policy is shown


class ToolError(ValueError):
    """A call that the policy made wrongly; the text is its result, and the policy may try again."""


@dataclass(frozen=True, slots=True)
class Tool:
    """function: its OpenAI function object (name, description, parameters). run: takes the arguments and returns the
    result's text; may be a coroutine function. What it raises but ToolError, and a call of more than `seconds`, is the
    environment's fault: nothing is learned from the rollout."""

    function: Mapping[str, Any]
    run: Callable[[dict[str, Any]], str | Awaitable[str]]
    seconds: float = 10.0

    @property
    def name(self) -> str:
        return self.function["name"]


def thinking_mode(effort: Effort) -> str:
    """The mode's name in the encoding."""
    return "chat" if effort is Effort.NON_THINK else "thinking"


def chat_segments(
    tokenizer: Tokenizer, messages: Sequence[Message], effort: Effort, functions: Sequence[Mapping[str, Any]] = ()
) -> list[Segment]:
    """A conversation as the policy sees it: tools at the head of the system text, reasoning kept where there are tools,
    in the service's form. Raises ValueError naming message and field."""
    shown: list[dict[str, Any]] = [dict(message) for message in messages]
    if functions:
        if not shown or shown[0].get("role") != "system":
            shown.insert(0, {"role": "system", "content": ""})
        shown[0]["tools"] = [{"type": "function", "function": function} for function in functions]
    return render_segments(
        shown,
        thinking_mode(effort),
        drop_thinking=not functions,
        reasoning_effort="max" if effort is Effort.MAX else "high",
        dialect=served(tokenizer.dialect),
    )


def chat_prompt(
    tokenizer: Tokenizer,
    key: str,
    messages: Sequence[Message],
    *,
    domain: str,
    effort: Effort = Effort.HIGH,
    functions: Sequence[Mapping[str, Any]] = (),
    **task: Any,
) -> Prompt:
    """A prompt for `ChatEnvironment`. task: `verifier` and `answer`, and what else the environment reads; messages and
    functions are added to it."""
    segments = chat_segments(tokenizer, messages, effort, functions)
    fields = {**task, "messages": [dict(message) for message in messages]}
    if functions:
        fields["functions"] = [dict(function) for function in functions]
    return Prompt(key, tuple(tokenizer.encode_segments(segments)), domain, effort, fields)


def read_turn(
    tokenizer: Tokenizer, tokens: Sequence[int], finish: FinishReason, effort: Effort, functions: Sequence[Any]
) -> tuple[ParsedCompletion, int]:
    """What a turn says, and how many tokens of it are reasoning. Raises ValueError for an id without text."""
    answer = AnswerInProgress(
        tokenizer, thinking=thinking_mode(effort) == "thinking", tools=bool(functions), functions=functions or None
    )
    for token in tokens[:-1]:
        answer.step(TokenEvent(token))
        if answer.over:
            break
    else:
        answer.step(TokenEvent(tokens[-1] if tokens else None, finish))
    return answer.parsed, answer.reasoning_tokens


def check_truth(prompt: Prompt, verifiers: Mapping[str, Callable[[str, Any], Any]]) -> None:
    """Raise ValueError naming the prompt where its task names none of these verifiers, or has no answer that a verifier
    of ours can compare with."""
    name, answer = task_field(prompt, "verifier"), task_field(prompt, "answer")
    if name not in verifiers:
        raise ValueError(f"prompt {prompt.key}: task.verifier must be one of {', '.join(verifiers)}, got {name!r}")
    if verifiers[name] is VERIFIERS.get(name):
        try:
            check_expected(name, answer)
        except ValueError as error:
            raise ValueError(f"prompt {prompt.key}: answer: {error}") from error


@dataclass(slots=True)
class ChatEnvironment:
    """Judges the final answer of a conversation, single turn, or several with tools.

    verifiers: by name; called with the answer's content and the task's `answer`, give the reward within `seconds`; may
    be coroutine functions. tools: of a prompt. turns: answers of the policy at most. Answers that were cut have reward
    0: what was not finished was not answered. A call of an unknown tool or with damaged markup is none, as on a server,
    and ends the episode.
    """

    tokenizer: Tokenizer
    verifiers: Mapping[str, Callable[[str, Any], float | Awaitable[float]]]
    tools: Callable[[Prompt], Sequence[Tool]] = lambda prompt: ()
    turns: int = 8
    seconds: float = 10.0
    calls: ForeignCalls = field(default_factory=ForeignCalls)

    def start(self, prompt: Prompt) -> "ChatEpisode":
        check_truth(prompt, self.verifiers)
        tools = {tool.name: tool for tool in self.tools(prompt)}
        for shown in prompt.task.get("functions", ()):
            if shown["name"] not in tools:
                raise ValueError(
                    f"prompt {prompt.key}: shows the tool {shown['name']!r}, but its environment has no such tool to "
                    f"run; it has {', '.join(tools) or 'none'}"
                )
        if tools:
            task_field(prompt, "messages")
        return ChatEpisode(self, prompt, tools)


class ChatEpisode:
    """One conversation. The messages grow by each turn and by the results of its calls."""

    def __init__(self, environment: ChatEnvironment, prompt: Prompt, tools: Mapping[str, Tool]) -> None:
        self._environment, self._prompt, self._tools = environment, prompt, tools
        self._functions = [dict(tool.function) for tool in tools.values()]
        self._messages: list[Message] = list(prompt.task.get("messages", ()))
        self._last = ParsedCompletion()
        self._counts = {"turns": 0.0, "reasoning_tokens": 0.0, "calls": 0.0, "failed_calls": 0.0, "malformed": 0.0}

    async def turn(self, tokens: Sequence[int], finish: FinishReason) -> More | None:
        parsed = self._read(tokens, finish)
        calls = parsed.message()["tool_calls"]
        over = self._counts["turns"] >= self._environment.turns
        if finish is not FinishReason.STOP or parsed.broken or not calls or over:
            return None
        results = [await self._call(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        return self._more(results)

    def replay(self, tokens: Sequence[int], more: More) -> None:
        self._read(tokens, FinishReason.STOP)
        self._take(more.note["results"], more.note["failed"])

    async def verdict(self, finish: FinishReason) -> Verdict:
        cut = finish is not FinishReason.STOP
        metrics = {**self._counts, "cut": float(cut)}
        if cut:
            return Verdict(0.0, metrics)
        name, expected = self._prompt.task["verifier"], self._prompt.task["answer"]
        environment = self._environment
        reward = await environment.calls.run(
            f"verifier {name}", environment.seconds, environment.verifiers[name], self._last.content, expected
        )
        return Verdict(reward, metrics).checked()

    def _read(self, tokens: Sequence[int], finish: FinishReason) -> ParsedCompletion:
        effort = self._prompt.effort
        parsed, reasoning = read_turn(self._environment.tokenizer, tokens, finish, effort, self._functions)
        self._last = parsed
        self._counts["turns"] += 1
        self._counts["reasoning_tokens"] += reasoning
        self._counts["calls"] += len(parsed.tool_calls)
        self._counts["malformed"] += parsed.malformed
        return parsed

    async def _call(self, name: str, arguments: str) -> tuple[str, bool]:
        """The text of a call's result, and whether the policy called wrongly."""
        tool, calls = self._tools[name], self._environment.calls
        try:
            result = await calls.run(f"tool {name}", tool.seconds, tool.run, json.loads(arguments), passing=ToolError)
        except ToolError as error:
            return f"Error: {error}", True
        with told_as_fault(f"the result of tool {name}"):
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
            text.encode()  # a lone surrogate is no text
        if len(text) > LONGEST_RESULT:
            text = f"{text[:LONGEST_RESULT]}\n... ({len(text) - LONGEST_RESULT} more characters)"
        return text, False

    def _more(self, results: Sequence[tuple[str, bool]]) -> More:
        texts, failed = [text for text, _ in results], sum(wrong for _, wrong in results)
        before = len(self._messages) + 1
        self._take(texts, failed)
        segments = render_segments(
            self._messages[before:],
            thinking_mode(self._prompt.effort),
            context=self._messages[:before],
            drop_thinking=False,
            dialect=served(self._environment.tokenizer.dialect),
        )
        tokens = self._environment.tokenizer.encode_segments(segments)
        return More(tuple(tokens), {"results": texts, "failed": failed})

    def _take(self, results: Sequence[str], failed: int) -> None:
        """The turn and the results of its calls become messages."""
        self._counts["failed_calls"] += failed
        self._messages += [self._last.message(), *({"role": "tool", "content": text} for text in results)]
