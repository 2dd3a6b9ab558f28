"""`dsv4 render` and `POST /render`: the prompt the server would send, a line each, without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.testing.stub import StubGenerator
from tests.conftest import ROOT
from tests.server.conftest import Server

BODY = {"messages": [{"role": "user", "content": "hi"}], "reasoning_effort": "max"}


def render(*arguments: str, lines: list[Any], given: str = "-") -> tuple[int, list[dict[str, Any]]]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    code = "import sys\nfrom dsv4.cli.__main__ import main\n"
    code += "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "render", given, *arguments]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_lines_in_lines_out(tmp_path: Path) -> None:
    good = {"api": "chat", "body": BODY}
    rc, found = render(lines=[good, "", {"api": "responses", "body": {"input": "hi", "reasoning": {"effort": "none"}}}])
    assert rc == 0
    assert found[1] == {"prompt": "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜></think>"}
    assert found[0]["prompt"].startswith("<｜begin▁of▁sentence｜>Reasoning Effort: Absolute maximum")
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(good))
    _, found = render("--dialect", "v4-0731", "--tokens", lines=[], given=str(file))
    assert found[0]["prompt"].startswith("<｜begin▁of▁sentence｜>Reasoning Effort: Beyond maximum")
    assert Tokenizer.load(ROOT / "models" / "nano").decode(found[0]["tokens"]) == found[0]["prompt"]


def test_a_line_is_one_line() -> None:
    odd = "a\u2028b\u2029c\x85d\n\r\x0b\x1c"
    body = {"messages": [{"role": "user", "content": odd}], "thinking": False}
    _, (found,) = render(lines=[{"api": "chat", "body": body}])
    assert found["prompt"] == f"<｜begin▁of▁sentence｜><｜User｜>{odd}<｜Assistant｜></think>"


def test_a_wrong_line_is_answered_as_the_server_would() -> None:
    rc, found = render(lines=["{", {"api": "mail", "body": {}}, {"api": "messages", "body": {"messages": []}}])
    assert rc == 1
    assert [line["error"]["param"] for line in found] == ["body", "api", "messages"]


def test_the_route() -> None:
    tokenizer = Tokenizer.load(ROOT / "models" / "nano")
    server = Server(tokenizer, StubGenerator([1]))
    answer = server.request("POST", "/v1/render", json={"api": "chat", "body": BODY, "tokens": True}).json()
    server.post(**BODY)
    assert answer["tokens"] == server.generator.calls[-1].prompt
    assert answer["prompt"] == tokenizer.decode(answer["tokens"])
    assert server.request("POST", "/render", json={"api": "chat", "body": {}}).status_code == 400
    assert server.request("POST", "/render", json=[]).status_code == 400
