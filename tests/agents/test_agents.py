"""Real agents against the server: each is installed, writes a file and reads it back.

The model is scripted, the server and the programs are not. Everything the server logs is looked at: no request may be
refused, and from the second turn on at least 95 % of each prompt must be what the cache has.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from dsv4.encoding import Tokenizer
from dsv4.server import Settings, create_app
from tests.agents.clients import CLIENTS, Client, Place, npm_is_there
from tests.agents.scripted import SUMMARY, TASK, ScriptedModel
from tests.conftest import ROOT
from tests.server.conftest import listening

SHARE = 0.95
# long enough for a turn to be small beside the prompt, as with real agents
RULES = "Work carefully and say what you did. " * 40
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}, "content": {"type": "string"}}}
NAMES = ("write_file", "read_file")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.program)
def test_agent_writes_and_reads_a_file(
    client: Client, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not client.python and not npm_is_there():
        pytest.skip("npm is not installed")
    try:
        client.install()
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"{client.package} cannot be installed here: {getattr(error, 'stderr', '') or error}")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    model = ScriptedModel(tokenizer, work)
    app = create_app(model, tokenizer, model_name="nano", settings=Settings())
    with listening(SimpleNamespace(app=app)) as url:
        done = client.run(Place(url, home, work))
    log = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "hello.txt").read_text().strip() == "42"
    output = done.stdout + done.stderr
    assert not [mark for mark in ("DSML", "<think>", "</think>") if mark in output]
    statuses = {(entry["path"], entry["status"]) for entry in log if entry["event"] == "request"}
    assert {status for _, status in statuses} == {200}, statuses
    assert {entry["event"] for entry in log} == {"request"}
    later = [turn for turn in model.turns if turn.calls]
    assert len(later) >= client.turns - 1
    assert all(turn.share >= SHARE for turn in later), model.turns


Step = Callable[[dict[str, Any]], None]


def chat_step(body: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Append an answer and the results of its calls as an agent would; whether there were calls."""
    message = answer["choices"][0]["message"]
    message["tool_calls"] = [
        {**call, "function": {**call["function"], "arguments": json.dumps(json.loads(call["function"]["arguments"]))}}
        for call in message.get("tool_calls", ())
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in message["tool_calls"]]
    body["messages"] += [message, *results]
    return bool(results)


def messages_step(body: dict[str, Any], answer: dict[str, Any]) -> bool:
    """The same in Anthropic's form, with the notes Claude Code puts behind the first user turn, now as a string."""
    calls = [block for block in answer["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "ok"} for call in calls]
    body["messages"][1]["content"] = NOTES
    body["messages"] += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]
    return bool(calls)


def responses_step(body: dict[str, Any], answer: dict[str, Any]) -> bool:
    """The same in the form of Responses."""
    calls = [item for item in answer["output"] if item["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "ok"} for call in calls]
    body["input"] += [*answer["output"], *results]
    return bool(calls)


NOTES = "# Environment\nplatform: linux"
USER = {"role": "user", "content": TASK}
FUNCTIONS = [{"name": name, "parameters": SCHEMA} for name in NAMES]
LOOPS: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, Any], dict[str, Any]], bool]]] = {
    "chat": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "system", "content": RULES}, USER],
            "tools": [{"type": "function", "function": function} for function in FUNCTIONS],
        },
        chat_step,
    ),
    "messages": (
        "/v1/messages?beta=true",
        {
            "system": RULES,
            "messages": [USER, {"role": "system", "content": [{"type": "text", "text": NOTES}]}],
            "tools": [{"name": name, "input_schema": SCHEMA} for name in NAMES],
        },
        messages_step,
    ),
    "responses": (
        "/v1/responses",
        {
            "input": [{"role": "developer", "content": RULES}, USER],
            "tools": [{"type": "function", **function} for function in FUNCTIONS],
        },
        responses_step,
    ),
}


@pytest.mark.parametrize("dialect", LOOPS)
def test_loop_keeps_its_prefix(dialect: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What the agents do, without them: three turns, each prompt the one before with a little more."""
    path, body, step = LOOPS[dialect]
    body = json.loads(json.dumps(body))
    model = ScriptedModel(tokenizer, tmp_path)
    app = create_app(model, tokenizer, model_name="nano", settings=Settings())
    with listening(SimpleNamespace(app=app)) as url, httpx.Client(base_url=url) as client:
        more = True
        while more:
            response = client.post(path, json={"model": "nano", **body})
            assert response.status_code == 200, response.text
            more = step(body, response.json())
    assert SUMMARY in response.text
    assert [turn.calls for turn in model.turns] == [0, 1, 2]
    assert min(turn.share for turn in model.turns[1:]) >= SHARE, model.turns
