"""A model of inspect-ai over our client: it sends what a solver has prepared, and shows the answer to inspect."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dsv4.evals.client import Client
from dsv4.evals.extra import needs_extra
from dsv4.evals.suite import Message
from dsv4.verify.answer import Answer, Call

with needs_extra():
    from inspect_ai.model import (  # pyrefly: ignore[missing-import]  (an extra)
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
        GenerateConfig,
        Model,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        StopReason,
        modelapi,
    )
    from inspect_ai.tool import ToolChoice, ToolInfo  # pyrefly: ignore[missing-import]

_KINDS = {
    "system": ChatMessageSystem,
    "developer": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
    "tool": ChatMessageTool,
}
_REASONS: dict[str | None, StopReason] = {"stop": "stop", "length": "max_tokens", "tool_calls": "tool_calls"}


@modelapi(name="dsv4")
class EndpointModel(ModelAPI):
    """A server with OpenAI's interface. Messages keep the fields that inspect does not know in `metadata`; the fields
    of a request besides messages are `config.extra_body`."""

    def __init__(self, client: Client) -> None:
        super().__init__(client.endpoint.model or "unnamed")
        self._client = client

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        body = {**(config.extra_body or {}), "messages": [_to_wire(message) for message in input]}
        return _output(self.model_name, await self._client.ask(body))

    def should_retry(self, ex: BaseException) -> bool:
        """Never: the client has tried again, and told so."""
        return False

    def connection_key(self) -> str:
        """Requests of one endpoint share a limit."""
        return self._client.endpoint.url


def model_of(client: Client) -> Model:
    """The endpoint as a model of inspect."""
    return Model(EndpointModel(client), GenerateConfig())


def from_wire(messages: Sequence[Message]) -> list[ChatMessage]:
    """Messages of OpenAI's interface as inspect shows them. `_to_wire` gives them back unchanged."""
    found: list[ChatMessage] = []
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) else ""
        found.append(_KINDS[message["role"]](content=text, metadata={"wire": dict(message)}))
    return found


def _to_wire(message: ChatMessage) -> dict[str, Any]:
    assert message.metadata is not None  # from_wire has made it
    return dict(message.metadata["wire"])


def answer_in(output: ModelOutput) -> Answer:
    """The answer that `EndpointModel` has put into its output."""
    return read_answer((output.metadata or {})["answer"])


def read_answer(kept: Mapping[str, Any]) -> Answer:
    """An answer that `kept_answer` has written."""
    calls = tuple(Call(**call) for call in kept["calls"])
    return Answer(kept["content"], kept["reasoning"], calls, kept["finish"], kept["usage"])


def kept_answer(answer: Answer) -> dict[str, Any]:
    """An answer as JSON, without tokens."""
    return {
        "content": answer.content,
        "reasoning": answer.reasoning,
        "calls": [asdict(call) for call in answer.calls],
        "finish": answer.finish,
        "usage": dict(answer.usage),
    }


def _output(model: str, answer: Answer) -> ModelOutput:
    thought: list[Any] = [ContentReasoning(reasoning=answer.reasoning)] if answer.reasoning else []
    calls = "".join(f"\n[call of {call.name}: {call.arguments}]" for call in answer.calls)
    message = ChatMessageAssistant(content=[*thought, ContentText(text=answer.content + calls)], model=model)
    prompt, sampled = answer.count("prompt_tokens"), answer.count("completion_tokens")
    known = prompt is not None and sampled is not None
    return ModelOutput(
        model=model,
        choices=[ChatCompletionChoice(message=message, stop_reason=_REASONS.get(answer.finish, "unknown"))],
        usage=ModelUsage(input_tokens=prompt, output_tokens=sampled, total_tokens=prompt + sampled) if known else None,
        metadata={"answer": kept_answer(answer)},
    )
