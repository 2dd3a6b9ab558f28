"""Any JSON body gets an answer or a 4xx in the route's shape, never a 5xx, and the server goes on."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.conftest import Converse

ROUTES = ("/chat/completions", "/v1/messages", "/messages/count_tokens", "/responses", "/completions", "/tokenize")
WORDS = (
    "user", "assistant", "system", "tool", "text", "Hi", "function", "tool_use", "tool_result", "thinking", "required",
    "any", "json_schema", "enabled", "weather", "message", "function_call", "function_call_output", "reasoning",
    "\u0000", "{", "text of a tool", "title",
)  # fmt: skip
NAMES = (
    "messages", "role", "content", "type", "text", "tools", "name", "input", "input_schema", "parameters", "function",
    "tool_choice", "tool_calls", "arguments", "thinking", "system", "stream", "stop", "max_tokens", "temperature",
    "reasoning", "effort", "response_format", "json_schema", "schema", "prompt", "suffix", "logit_bias", "metadata",
    "output_config", "format", "properties", "call_id", "output", "tool_use_id", "id", "prefix", "instructions", "5",
    "task", "thinking_budget", "budget_tokens",
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-3, 40) | st.floats(-9, 9) | st.sampled_from(WORDS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
PART = st.fixed_dictionaries({"type": st.sampled_from(WORDS)}, optional=dict.fromkeys(NAMES[4:12], VALUES))
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(WORDS[:4]), "content": st.sampled_from(WORDS) | st.lists(PART, max_size=2) | VALUES},
    optional={"tool_calls": VALUES, "tool_call_id": VALUES, "prefix": VALUES, "type": st.sampled_from(WORDS)},
)
FIELDS = dict.fromkeys(set(NAMES) - {"messages", "input", "prompt"}, VALUES)


@pytest.mark.parametrize("path", ROUTES)
def test_no_body_breaks_the_server(serve: Converse, path: str) -> None:
    server = serve("why</think>The answer")

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        messages=st.lists(MESSAGE, min_size=1, max_size=3) | VALUES,
        fields=st.fixed_dictionaries({}, optional=FIELDS),
    )
    def check(messages: Any, fields: dict[str, Any]) -> None:
        name = "input" if path == "/responses" else "prompt" if path == "/completions" else "messages"
        body = {name: messages, **fields}
        response = server.request("POST", path, json=body)
        assert response.status_code < 500, (body, response.text)
        if response.status_code >= 400:
            assert response.json()["error"]["message"], body
        else:
            assert "internal error" not in response.text, body

    check()
