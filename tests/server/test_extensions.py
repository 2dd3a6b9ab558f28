"""Fields of our own: quick instructions, thinking budgets; and the warning about short contexts at effort max."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import ConstraintFactory
from tests.server.conftest import Converse, Server

USER = {"role": "user", "content": "How tall is it?"}
TASKS = ("title", "query", "authority", "domain", "action", "read_url")
ROUTES = {
    "/v1/chat/completions": lambda fields: {"messages": [USER], **fields},
    "/v1/messages": lambda fields: {"messages": [USER], "max_tokens": 100, **fields},
    "/v1/responses": lambda fields: {"input": [USER], **fields},
}
EVERY_ROUTE = pytest.mark.parametrize("path", ROUTES)


def send(server: Server, path: str, **fields: Any) -> Any:
    response = server.request("POST", path, json=ROUTES[path](fields))
    assert response.status_code == 200, response.text
    return response


def prompt_of(server: Server, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(server.generator.calls[-1].prompt)


@EVERY_ROUTE
@pytest.mark.parametrize("task", TASKS)
def test_quick_instruction(serve: Converse, tokenizer: Tokenizer, path: str, task: str) -> None:
    server = serve("Height of it")
    text = send(server, path, task=task).text
    prompt = prompt_of(server, tokenizer)
    header = "<｜Assistant｜><think>" if task == "action" else ""
    assert prompt.endswith(f"<｜User｜>How tall is it?{header}<｜{task}｜>")
    # the answer is text from its first token on, also while the conversation thinks
    assert "Height of it" in text
    assert "reasoning_text" not in text
    assert '"type":"thinking"' not in text


@EVERY_ROUTE
def test_title_of_an_answer(serve: Converse, tokenizer: Tokenizer, path: str) -> None:
    server = serve("Towers")
    talk = [USER, {"role": "assistant", "content": "300 m."}]
    text = send(server, path, task="title", **{"input" if "responses" in path else "messages": talk}).text
    assert prompt_of(server, tokenizer).endswith("</think>300 m.<｜end▁of▁sentence｜><｜title｜>")
    assert "Towers" in text


def test_quick_instruction_shares_the_prefix(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("x")
    earlier = [{"role": "system", "content": "Rules."}, {"role": "user", "content": "Paris?"}, USER]
    server.answer(messages=earlier)
    server.answer(messages=earlier, task="title")
    plain, task = (call.prompt for call in server.generator.calls)
    assert task[:-1] == plain[: len(task) - 1]  # all but the instruction itself


def test_quick_instruction_needs_a_user(serve: Converse) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
    ]
    response = serve("x").post(messages=messages, task="title")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "task")
    response = serve("x").post(task="poem")
    assert response.status_code == 400
    assert "'read_url'" in response.json()["error"]["message"]


BUDGETS = [
    ("/v1/chat/completions", {"thinking": {"type": "enabled", "budget_tokens": 3}}),
    ("/v1/chat/completions", {"thinking_budget": 3}),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 3}}),
    ("/v1/responses", {"thinking_budget": 3}),
]


def sampled(factory: ConstraintFactory | None, tokenizer: Tokenizer, wish: int, count: int) -> list[int]:
    """What a model writes that wants nothing but `wish`, under a constraint."""
    assert factory is not None
    state, tokens = factory.start(), []
    for _ in range(count):
        mask = state.allowed()
        allowed = range(tokenizer.vocab_size) if mask is None else [
            token for token in range(tokenizer.vocab_size) if mask[token // 8] >> token % 8 & 1
        ]  # fmt: skip
        tokens.append(wish if wish in allowed else allowed[0])
        state.accept(tokens[-1])
    return tokens


@pytest.mark.parametrize(("path", "fields"), BUDGETS)
def test_thinking_budget(serve: Converse, tokenizer: Tokenizer, path: str, fields: dict[str, Any]) -> None:
    server = serve("x</think>y")
    send(server, path, **fields)
    close = tokenizer.token_id("</think>")
    tokens = sampled(server.generator.calls[-1].params.constraint, tokenizer, 300, 6)
    assert tokens == [300, 300, 300, close, 300, 300]


def test_thinking_budget_and_a_schema(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve('x</think>{"n": 1}')
    server.answer(thinking_budget=0, response_format={"type": "json_object"})
    tokens = sampled(server.generator.calls[-1].params.constraint, tokenizer, 300, 2)
    assert tokens[0] == tokenizer.token_id("</think>")
    assert tokenizer.decode(tokens[1:]).startswith("{")


def test_no_budget_where_nothing_is_thought(serve: Converse) -> None:
    server = serve("x")
    server.answer(thinking={"type": "disabled"}, thinking_budget=3)
    assert server.generator.calls[-1].params.constraint is None
    assert server.post(thinking_budget=-1).status_code == 400


@EVERY_ROUTE
def test_highest_effort_in_a_short_context(serve: Converse, capsys: pytest.CaptureFixture[str], path: str) -> None:
    effort = {"/v1/chat/completions": {"reasoning_effort": "max"}, "/v1/messages": {"output_config": {"effort": "max"}}}
    fields = effort.get(path, {"reasoning": {"effort": "max"}})
    assert "393216 tokens, this has 4096" in send(serve("x"), path, **fields).headers["warning"]
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["short_context_for_max_effort", "request"]
    assert "warning" not in send(serve("x"), path).headers
    assert "warning" not in send(serve("x", context_length=400_000), path, **fields).headers


def test_a_custom_tool_shows_its_grammar(serve: Converse, tokenizer: Tokenizer) -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch"'}
    server = serve("x")
    send(server, "/v1/responses", tools=[{"type": "custom", "name": "apply_patch", "format": form}])
    assert 'this lark grammar:\\nstart: \\"*** Begin Patch\\"' in prompt_of(server, tokenizer)


@pytest.mark.slow
def test_a_real_model_stops_thinking(tokenizer: Tokenizer) -> None:
    """The bundled model, whose thoughts are longer than eight tokens without a budget."""
    from dsv4.api.loading import load
    from dsv4.server import Settings, create_app
    from tests.conftest import ROOT

    folder: Path = ROOT / "models" / "nano"
    model = load(folder, context_length=2048)
    assert model.tokenizer is not None
    server = Server.__new__(Server)
    server.app = create_app(model.service, model.tokenizer, model_name="nano", settings=Settings())
    try:
        messages = [{"role": "user", "content": "What is 17 + 25?"}]
        counts = [
            server.answer(model="nano", messages=messages, max_tokens=200, seed=1, **fields)["usage"]
            for fields in ({}, {"thinking_budget": 2})
        ]
    finally:
        model.service.close()
    free, bound = (count["completion_tokens_details"]["reasoning_tokens"] for count in counts)
    assert free > 2 == bound
