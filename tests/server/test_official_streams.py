"""Answers beside those of the official converter: text around the parts of an answer, and sampling."""

import json
from typing import Any

import pytest

from dsv4.answer import AnswerInProgress
from dsv4.encoding import Tokenizer
from dsv4.generation import FinishReason, TokenEvent
from tests.server.conftest import Converse

recipe = pytest.importorskip("deepseek_recipe")

CALLS = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
BODY = {
    "model": "DeepSeek-V4-Pro",
    "messages": [{"role": "user", "content": "Hi"}],
    "tools": [{"type": "function", "function": {"name": "f"}}],
}
FINISH = {
    FinishReason.STOP: recipe.InferenceFinishReason.Stop,
    FinishReason.LENGTH: recipe.InferenceFinishReason.Length,
}


def official(text: str, thinking: bool, finish: FinishReason) -> tuple[str, str, str]:
    body = {**BODY, "thinking": {"type": "enabled" if thinking else "disabled"}}
    request = recipe.ChatCompletionRequest(json.dumps(body)).convert(recipe.ConversionOptions())
    generator = recipe.ChatCompletionRequest.chunk_generator(request, "id", "model")
    processor = recipe.StreamProcessor(generator, request.parsing_options)
    chunks = processor.push(recipe.InferenceChunk.ready(prompt_usage=recipe.PromptUsage(prompt_tokens=4)))
    for char in text:
        chunks += processor.push(recipe.InferenceChunk.text(char, 1))
    chunks += [*processor.push(recipe.InferenceChunk.finish(FINISH[finish])), *processor.finish()]
    choices = [choice for chunk in chunks for choice in json.loads(chunk.to_json())["choices"]]

    def joined(name: str) -> str:
        return "".join(choice["delta"].get(name) or "" for choice in choices)

    return joined("reasoning_content"), joined("content"), choices[-1]["finish_reason"]


def ours(tokenizer: Tokenizer, text: str, thinking: bool, finish: FinishReason) -> tuple[str, str, str]:
    answer = AnswerInProgress(tokenizer, thinking=thinking, tools=True)
    tokens = tokenizer.encode_text(text, trusted=True)
    ends = [tokenizer.eos_id] if finish is FinishReason.STOP else []
    said = {"ReasoningDelta": "", "ContentDelta": ""}
    events = [TokenEvent(token) for token in [*tokens, *ends]]
    events[-1] = TokenEvent(events[-1].token, finish=finish)
    for event in events:
        for delta in answer.step(event).deltas:
            if type(delta).__name__ in said:
                said[type(delta).__name__] += delta.text
    assert (said["ReasoningDelta"], said["ContentDelta"]) == (answer.parsed.reasoning_content, answer.parsed.content)
    return said["ReasoningDelta"], said["ContentDelta"], answer.finish_reason


@pytest.mark.parametrize("finish", FINISH)
@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        *((text, True) for text in ("\n\nthink\n\nmore\n\n</think>\n\nanswer\n\n", "  \n x \n </think> \n y", "a\n")),
        *((text, True) for text in ("a</think>\n\n\n", "\n\n</think>\n", "\ta\r\n</think>\r\nb")),
        *((text, True) for text in (f"a\n</think>\n\n{CALLS}", f"a</think>text\n\n\n{CALLS}", f"a</think>text{CALLS}")),
        *((text, False) for text in ("\n\nanswer\n\n", " \n x", f"\n{CALLS}", f"text\n{CALLS}")),
    ],
)
def test_line_breaks_around_parts(tokenizer: Tokenizer, text: str, thinking: bool, finish: FinishReason) -> None:
    assert ours(tokenizer, text, thinking, finish)[:2] == official(text, thinking, finish)[:2]


def test_finish_reasons(tokenizer: Tokenizer) -> None:
    for text in ("a</think>b", f"a</think>b{CALLS}"):
        assert ours(tokenizer, text, True, FinishReason.STOP) == official(text, True, FinishReason.STOP)


@pytest.mark.parametrize("finish", FINISH)
def test_a_continued_answer_keeps_its_first_breaks(tokenizer: Tokenizer, finish: FinishReason) -> None:
    answer = AnswerInProgress(tokenizer, thinking=False, continued=True)
    for token in tokenizer.encode_text("\n\nx\n"):
        answer.step(TokenEvent(token))
    answer.step(TokenEvent(tokenizer.eos_id if finish is FinishReason.STOP else None, finish=finish))
    assert answer.parsed.content == "\n\nx\n"


@pytest.mark.parametrize(("fields", "top_p"), [({}, 1.0), ({"tools": BODY["tools"]}, 0.95)])
def test_sampling_with_tools(serve: Converse, fields: dict[str, Any], top_p: float) -> None:
    """Upstream thinks with top_p 0.95 when the request has tools, whatever the client says."""
    server = serve("x")
    server.post(**fields, top_p=0.5)
    server.post(**fields, top_p=0.5, thinking={"type": "disabled"})
    thought, plain = server.generator.calls
    assert (thought.params.top_p, plain.params.top_p) == (top_p, 0.5)
