"""The bridge to stdio MCP servers: what is allowed, what is passed on, and what ends when."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from dsv4.cli.server_flags import ServerFlags
from dsv4.server import Keys
from dsv4.server.mcp import AllowedMcp
from dsv4.server.mcp.process import McpProcess
from tests.server.conftest import Converse, listening

PROGRAM = Path(__file__).with_name("mcp_program.py")
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


def entry(file: Path, *arguments: str, **more: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": [str(PROGRAM), str(file), *arguments], **more}


class Client:
    """A client of one bridged server, written out by hand. opened: those of the running test."""

    opened: ClassVar[list["Client"]] = []

    def __init__(self, url: str, name: str = "scripted", **headers: str) -> None:
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60)
        self.path, self.session = f"/mcp/{name}", ""
        self.opened.append(self)

    def post(self, message: Any, **headers: str) -> httpx.Response:
        own = {"mcp-session-id": self.session} if self.session else {}
        return self.http.post(self.path, json=message, headers={**own, **headers})

    def start(self) -> "Client":
        response = self.post(INITIALIZE)
        assert response.status_code == 200, response.text
        assert response.json()["result"]["serverInfo"]["name"] == "scripted"
        self.session = response.headers["mcp-session-id"]
        assert self.post({"jsonrpc": "2.0", "method": "notifications/initialized"}).status_code == 202
        return self

    def messages(self, method: str, number: int = 1, **params: Any) -> list[dict[str, Any]]:
        """All messages of the stream that answers a request."""
        response = self.post({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [part for part in response.text.split("\n\n") if part.startswith("data: ")]
        return [json.loads(part.removeprefix("data: ")) for part in events]

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return self.messages("tools/call", name=tool, arguments=arguments)[-1]

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """While a call runs that gets no answer."""
        call = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "progress-hang"}}
        with self.http.stream("POST", self.path, json=call, headers={"mcp-session-id": self.session}) as response:
            lines = response.iter_lines()
            assert "notifications/progress" in next(lines)
            yield

    def said(self, tool: str, **arguments: Any) -> str:
        return self.call(tool, **arguments)["result"]["content"][0]["text"]


@pytest.fixture
def bridge(serve: Converse, tmp_path: Path) -> Any:
    """`bridge(...)`: the address of a server that allows the scripted program; settings as keyword arguments."""

    @contextmanager
    def run(*arguments: str, seconds: float = 60, **settings: Any) -> Iterator[str]:
        servers = {"scripted": entry(tmp_path / "pids", *arguments, timeout=seconds)}
        allowed = AllowedMcp.parse({"mcpServers": servers})
        with listening(serve("x", settings={"mcp": allowed, **settings}), lifespan="on") as url:
            yield url
            while Client.opened:
                Client.opened.pop().http.close()

    return run


def gone(pid: int) -> bool:
    """Whether a process is over, waiting for it if need be (a child of ours stays as a zombie until it is read)."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_round_trip(bridge: Any) -> None:
    with bridge() as url:
        client = Client(url).start()
        tools = client.messages("tools/list")[-1]["result"]["tools"]
        assert [tool["name"] for tool in tools][:2] == ["echo", "hang"]
        assert json.loads(client.said("echo", a="日本", b=[1, None])) == {"a": "日本", "b": [1, None]}
        before, after = client.messages("tools/call", name="progress", arguments={})
        assert before["method"] == "notifications/progress"
        assert after["result"]["content"][0]["text"] == "done"
        assert client.http.delete(client.path, headers={"mcp-session-id": client.session}).status_code == 204
        over = client.post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"})
        assert over.status_code == 404
        assert over.json()["error"]["code"] == "mcp_session_over"


def test_the_bridge_answers_pings_and_keeps_banners_out(bridge: Any) -> None:
    with bridge() as url:
        client = Client(url).start()
        assert json.loads(client.said("ask")) == {"jsonrpc": "2.0", "id": "p1", "result": {}}
        assert client.said("banner") == "ok"
        assert "Welcome to my server!" in client.call("die")["error"]["message"]


def test_a_server_gets_no_secrets_of_this_one(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4_API_KEYS", "ann secret-of-ann")
    with bridge() as url:
        names = json.loads(Client(url).start().said("environment"))
    assert "PATH" in names
    assert "DSV4_API_KEYS" not in names


def test_a_server_that_dies_is_an_error_with_its_last_words(bridge: Any) -> None:
    with bridge() as url:
        dying, other = Client(url).start(), Client(url).start()
        message = dying.call("die")["error"]["message"]
        assert "ended with status 3" in message
        assert "the disk is full" in message
        again = dying.post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"})
        assert again.status_code == 404
        assert "the disk is full" in again.json()["error"]["message"]
        assert other.said("echo") == "{}"
        shown = httpx.get(f"{url}/mcp").json()["servers"][0]
        assert any("the disk is full" in line for line in shown["last_lines"])


def test_a_server_that_hangs_is_an_error_and_stops_nothing_else(bridge: Any) -> None:
    with bridge(seconds=8) as url:
        hanging, other = Client(url).start(), Client(url).start()
        found: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: found.append(hanging.call("hang")))
        thread.start()
        assert other.said("echo", a=1) == '{"a": 1}'
        assert httpx.get(f"{url}/health").status_code == 200
        thread.join(60)
        assert "no answer for 8 seconds" in found[0]["error"]["message"]
        # it only took no notice of one call
        assert hanging.said("echo") == "{}"


def test_a_line_without_end_ends_its_server(bridge: Any) -> None:
    with bridge() as url:
        message = Client(url).start().call("flood")["error"]["message"]
    assert "more than 4 MiB" in message


@pytest.mark.parametrize(
    ("start", "expected"),
    [("no-start", "I need a token"), ("slow-start", "no answer for 1 seconds"), ("refuse", "no such version")],
)
def test_a_server_that_does_not_start(bridge: Any, start: str, expected: str) -> None:
    with bridge(start, seconds=1 if start == "slow-start" else 60) as url:
        response = Client(url).post(INITIALIZE)
        assert response.status_code == 502
        assert expected in response.json()["error"]["message"]
        assert httpx.get(f"{url}/health").status_code == 200


def test_all_processes_end_with_the_server(bridge: Any, tmp_path: Path) -> None:
    with bridge() as url:
        child = int(Client(url).start().said("child"))
        assert Path(f"/proc/{child}").exists()
    assert gone(child)


def test_processes_are_bounded(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.server.mcp.sessions.MOST_PROCESSES", 1)
    with bridge() as url:
        first = Client(url).start()
        second = Client(url).start()  # takes the place of the idle one
        assert first.post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}).status_code == 404
        with second.hanging():
            refused = Client(url).post(INITIALIZE)
            assert refused.status_code == 429
            assert "all of them are busy" in refused.json()["error"]["message"]


def test_a_client_that_opens_many_ends_its_own(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.server.mcp.sessions.MOST_PROCESSES", 3)
    with bridge(keys=Keys.parse(["ann secret-of-ann", "bob secret-of-bob"])) as url:
        oldest = Client(url, **{"x-api-key": "secret-of-bob"}).start()
        greedy = [Client(url, **{"x-api-key": "secret-of-ann"}).start() for _ in range(3)]
        assert oldest.said("echo") == "{}"
        assert greedy[0].post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}).status_code == 404


def test_busy_programs_of_one_key_leave_places_for_others(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.server.mcp.sessions.MOST_PROCESSES", 4)
    ann, bob = ({"x-api-key": f"secret-of-{name}"} for name in ("ann", "bob"))
    with bridge(keys=Keys.parse(["ann secret-of-ann", "bob secret-of-bob"])) as url:
        idle = Client(url, **bob).start()
        first, second = Client(url, **ann).start(), Client(url, **ann).start()
        with first.hanging(), second.hanging():
            refused = Client(url, **ann).post(INITIALIZE)
            assert refused.status_code == 429
            assert "2 MCP servers run for this key already" in refused.json()["error"]["message"]
            Client(url, **bob).start()
            assert idle.said("echo") == "{}"  # no place of another key was taken


def test_last_lines_are_for_the_key_that_started_the_program(bridge: Any) -> None:
    with bridge(keys=Keys.parse(["ann secret-of-ann", "bob secret-of-bob"])) as url:
        ann, bob = ({"x-api-key": f"secret-of-{name}"} for name in ("ann", "bob"))
        Client(url, **ann).start().call("die")
        end, lines = time.monotonic() + 60, {}
        while not lines.get("ann") and time.monotonic() < end:
            listings = {"ann": httpx.get(f"{url}/mcp", headers=ann), "bob": httpx.get(f"{url}/mcp", headers=bob)}
            lines = {name: listing.json()["servers"][0]["last_lines"] for name, listing in listings.items()}
        assert any("the disk is full" in line for line in lines["ann"])
        assert lines["bob"] == []
        unknown = httpx.delete(f"{url}/mcp/scripted", headers={**bob, "mcp-session-id": "x"})
        assert (unknown.status_code, "the disk is full" in unknown.text) == (404, False)


def test_one_id_twice_is_an_error_of_the_second(tmp_path: Path) -> None:
    async def use() -> None:
        ended: list[McpProcess] = []
        program = AllowedMcp.parse({"mcpServers": {"scripted": entry(tmp_path / "pids")}}).programs["scripted"]
        process = await McpProcess.start(program, ended.append)
        call = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "progress-hang"}}
        first = process.ask(call)
        assert (await anext(first))["method"] == "notifications/progress"
        assert "not answered yet" in [message async for message in process.ask(call)][-1]["error"]["message"]
        assert process.knows(9)
        await first.aclose()
        await process.end()

    asyncio.run(use())


def test_an_idle_process_ends(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.server.mcp.sessions.IDLE_SECONDS", 0.2)
    with bridge() as url:
        assert Client(url).post(INITIALIZE).status_code == 200
        end = time.monotonic() + 60
        while not (lines := httpx.get(f"{url}/mcp").json()["servers"][0]["last_lines"]) and time.monotonic() < end:
            time.sleep(0.1)
        assert lines == ["its client closed it"]


def test_a_killed_server_ends_what_it_started(bridge: Any) -> None:
    with bridge() as url:
        client = Client(url).start()
        child = int(client.said("child"))
        status = Path(f"/proc/{child}/status").read_text()
        parent = int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid")))
        os.kill(parent, signal.SIGKILL)
        assert gone(child)


def test_keys_and_other_sites(bridge: Any) -> None:
    with bridge(keys=Keys.parse(["ann secret-of-ann", "bob secret-of-bob"]), local_only=False) as url:
        assert httpx.get(f"{url}/mcp").status_code == 401
        assert Client(url).post(INITIALIZE).status_code == 401
        ann = Client(url, authorization="Bearer secret-of-ann").start()
        assert ann.said("echo") == "{}"
        bob = Client(url, authorization="Bearer secret-of-bob")
        bob.session = ann.session
        assert bob.post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}).status_code == 404
        assert bob.http.delete(bob.path, headers={"mcp-session-id": ann.session}).status_code == 404
        evil = ann.post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, origin="https://evil.example")
        assert evil.status_code == 403
        assert ann.post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, origin=url).status_code == 200


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ([INITIALIZE], 400),
        ({"id": 1, "method": "initialize"}, 400),
        ({**INITIALIZE, "id": True}, 400),
        ({**INITIALIZE, "id": None}, 400),
        ({**INITIALIZE, "method": 3}, 400),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, 400),
        ("text", 400),
    ],
)
def test_what_is_no_message_starts_nothing(serve: Converse, tmp_path: Path, message: Any, status: int) -> None:
    allowed = AllowedMcp.parse({"mcpServers": {"scripted": entry(tmp_path / "pids")}})
    server = serve("x", settings={"mcp": allowed})
    assert server.request("POST", "/mcp/scripted", json=message).status_code == status


def test_only_what_is_allowed_can_be_reached(serve: Converse, tmp_path: Path) -> None:
    allowed = AllowedMcp.parse({"mcpServers": {"scripted": entry(tmp_path / "pids")}})
    server = serve("x", settings={"mcp": allowed})
    assert server.request("POST", "/mcp/other", json=INITIALIZE).status_code == 404
    assert server.request("POST", "/mcp/..%2Fscripted", json=INITIALIZE).status_code == 404
    assert server.request("POST", "/mcp/scripted", content=json.dumps(INITIALIZE)).status_code == 415
    assert server.request("GET", "/mcp/scripted").status_code == 405
    assert serve("x").request("POST", "/mcp/scripted", json=INITIALIZE).status_code == 404
    assert serve("x").request("GET", "/mcp").json() == {"servers": [], "allowed_origins": []}


def test_addresses_are_listed_with_their_origins(serve: Converse) -> None:
    allowed = AllowedMcp.parse(
        {
            "mcpServers": {"docs": {"url": "https://Example.com:8443/mcp?x=1"}, "off": {"url": "x", "disabled": True}},
            "allowedOrigins": ["http://127.0.0.1:3001"],
        }
    )
    listed = serve("x", settings={"mcp": allowed}).request("GET", "/mcp").json()
    assert listed["servers"] == [{"name": "docs", "kind": "http", "url": "https://Example.com:8443/mcp?x=1"}]
    assert listed["allowed_origins"] == ["https://example.com:8443", "http://127.0.0.1:3001"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "the file: expected an object"),
        ({}, "mcpServers: required"),
        ({"servers": {}}, "'servers' is not supported"),
        ({"mcpServers": {"a/b": {"command": "sh"}}}, "mcpServers.a/b: a name has"),
        ({"mcpServers": {"a": {"command": "no-such-program-here"}}}, "there is no program 'no-such-program-here'"),
        ({"mcpServers": {"a": {"command": "sh", "args": "x"}}}, "mcpServers.a.args: expected a list"),
        ({"mcpServers": {"a": {"command": "sh", "env": {"X": 1}}}}, "mcpServers.a.env.X: expected a text"),
        ({"mcpServers": {"a": {"command": "sh", "cwd": "/no/such"}}}, "mcpServers.a.cwd: /no/such is no folder"),
        ({"mcpServers": {"a": {"command": "sh", "timeout": 0}}}, "mcpServers.a.timeout: must be in"),
        ({"mcpServers": {"a": {"command": "sh", "autoApprove": []}}}, "'autoApprove' is not supported"),
        ({"mcpServers": {"a": {}}}, "mcpServers.a.command: expected a text"),
        ({"mcpServers": {"a": {"url": "file:///etc"}}}, "expected an http or https address"),
        ({"mcpServers": {"a": {"url": "https://x.example; script-src *"}}}, "expected an http or https address"),
        ({"mcpServers": {"a": {"url": "https://me:secret@x.example"}}}, "must hold no password"),
        ({"mcpServers": {"a": {"url": "https://x.example", "headers": {}}}}, "'headers' is not supported"),
        ({"mcpServers": {}, "allowedOrigins": ["https://x.example/path"]}, "allowedOrigins[0]: expected an origin"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, value: Any, expected: str) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps(value))
    with pytest.raises(ValueError) as caught:
        AllowedMcp.load(file)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_programs_for_everyone_on_the_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text('{"mcpServers": {}}')
    with pytest.raises(ValueError, match="--mcp starts programs"):
        ServerFlags(mcp=file, insecure=True).settings("0.0.0.0")
    assert not ServerFlags(mcp=file).settings("127.0.0.1").mcp
