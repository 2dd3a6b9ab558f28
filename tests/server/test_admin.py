"""The routes of operators: engine, cancel, usage, training runs, model, inspector; and who may see what."""

import asyncio
import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from dsv4.generation import EngineReport, RequestReport
from dsv4.server import Keys
from dsv4.server.accounts.ledger import Ledger, Usage
from dsv4.server.accounts.rates import TokenRates
from dsv4.server.admin.inspector import ranges
from dsv4.server.admin.runs import MOST_LINES, MOST_SAMPLES, Runs
from dsv4.testing.stub import EXPERTS
from tests.server.conftest import MODEL, Converse, Server

KEYS = Keys.parse(["ann secret-of-ann", "bob secret-of-bob", "op secret-of-op admin requests=1000"])
ANN, BOB, OP = ({"authorization": f"Bearer secret-of-{name}"} for name in ("ann", "bob", "op"))
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def get(server: Server, path: str, **options: Any) -> Any:
    response = server.request("GET", path, **options)
    assert response.status_code == 200, response.text
    return response.json()


def while_answering(server: Server, use: Callable[[httpx.AsyncClient, list[asyncio.Task[httpx.Response]]], Any]) -> Any:
    """Run `await use(client, answers)` while ann's and bob's endless answers go on; then end the answers."""

    async def run() -> Any:
        async with server._http() as client:
            send = [client.post("/v1/chat/completions", json=ASK, headers=who) for who in (ANN, BOB)]
            answers = [asyncio.ensure_future(one) for one in send]
            while sum(call.emitted > 3 for call in server.generator.calls) < 2:
                await asyncio.sleep(0.01)
            try:
                return await use(client, answers)
            finally:
                server.app.state.backend.generator.end()
                await asyncio.gather(*answers)

    return asyncio.run(run())


def endless(serve: Converse, **settings: Any) -> Server:
    return serve([300] * 4000, delay=0.01, settings={"keep_alive": 600.0, **settings})


def test_keys_of_operators() -> None:
    assert KEYS.sees_all("op")
    assert not KEYS.sees_all("ann")
    assert KEYS.limits["op"].requests == 1000
    assert Keys().sees_all("")
    assert Keys.parse(["ann secret-of-ann"]).sees_all("ann")
    assert Keys.parse(["secret-of-ann admin", "secret-of-bob"]).admins == {"key1"}
    with pytest.raises(ValueError, match="expected a limit"):
        Keys.parse(["ann secret-of-ann administrator"])


def test_engine(serve: Converse) -> None:
    server = endless(serve, keys=KEYS)

    async def use(client: httpx.AsyncClient, answers: Any) -> Any:
        pages = [(await client.get("/admin/engine?experts=1", headers=who)).json() for who in (OP, ANN)]
        return *pages, (await client.get("/admin/engine")).status_code

    everything, own, without_key = while_answering(server, use)
    assert without_key == 401
    assert {request["key"] for request in everything["requests"]} == {"ann", "bob"}
    assert (everything["operator"], everything["others"]) == (True, 0)
    assert [request["key"] for request in own["requests"]] == ["ann"]
    assert (own["operator"], own["others"]) == (False, 1)
    one = own["requests"][0]
    assert one["state"] == "answer"
    assert one["prompt"] == one["done"] > 0
    assert one["generated"] > 0
    assert one["first_token_seconds"] <= one["seconds"]
    assert one["pages"] == 1
    assert everything["resident"] is None or everything["resident"] > 1 << 20
    report = everything["report"]
    for pool in (report["pages"], report["slots"]):
        assert pool["free"] + pool["running"] + pool["kept"] == pool["count"]
    assert report["pages"]["running"] == 2
    assert {len(counts) for counts in report["experts"].values()} == {EXPERTS}
    told = [sum(row[i] for row in everything["rates"]["seconds"]) for i in (1, 2)]
    assert told[0] == 2 * one["prompt"]
    assert told[1] >= one["generated"]
    assert get(server, "/v1/admin/engine", headers=OP)["requests"] == []
    assert "experts" not in get(server, "/admin/engine", headers=OP)["report"]


def test_pages_that_ask_every_second_do_not_fill_the_log(serve: Converse, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve("x")
    get(server, "/admin/engine")
    assert "/admin/engine" not in capsys.readouterr().err
    server.request("GET", "/admin/engine?since=x")
    assert '"status": 400' in capsys.readouterr().err


def test_a_generator_that_reports_nothing(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("x")

    class Silent:
        context_length = 100

    monkeypatch.setattr(server.app.state.backend.generator, "_inner", Silent())
    found = get(server, "/admin/engine")
    assert found["report"] is None
    assert found["requests"] == []


def test_cancel(serve: Converse) -> None:
    server = endless(serve, keys=KEYS)

    async def use(client: httpx.AsyncClient, answers: list[asyncio.Task[httpx.Response]]) -> Any:
        ids = {r["key"]: r["id"] for r in (await client.get("/admin/engine", headers=OP)).json()["requests"]}
        foreign = await client.post(f"/admin/engine/cancel/{ids['bob']}", headers=ANN)
        own = await client.post(f"/admin/engine/cancel/{ids['ann']}", headers=ANN)
        ended = await answers[0]
        other = answers[1].done()
        await client.post(f"/v1/admin/engine/cancel/{ids['bob']}", headers=OP)
        again = await client.post(f"/admin/engine/cancel/{ids['ann']}", headers=OP)
        return foreign, own, ended, other, await answers[1], again

    foreign, own, ended, other, second, again = while_answering(server, use)
    assert foreign.status_code == again.status_code == 404
    assert own.json() == {"cancelled": 1}
    assert not other
    for response in (ended, second):
        error = json.loads(response.text.rstrip().rsplit("data: ", 1)[1])["error"]
        assert (error["code"], "operator" in error["message"]) == ("cancelled", True)
    assert all(call.closed_early for call in server.generator.calls)
    assert server.app.state.backend.active == {}


def test_a_cancelled_answer_that_is_not_streamed_is_403(serve: Converse) -> None:
    server = endless(serve, keys=KEYS)

    async def run() -> httpx.Response:
        async with server._http() as client:
            body = {**ASK, "stream": False}
            answer = asyncio.ensure_future(client.post("/v1/chat/completions", json=body, headers=ANN))
            while not server.app.state.backend.active:
                await asyncio.sleep(0.01)
            (one,) = server.app.state.backend.active
            await client.post(f"/admin/engine/cancel/{one}", headers=ANN)
            return await answer

    assert asyncio.run(run()).status_code == 403


def test_a_slow_report_does_not_hold_a_page_back(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in a long step reports late: pages get the last report, and one question waits for all of them."""
    server, asked = serve("x"), []

    async def late() -> EngineReport:
        asked.append(1)
        await asyncio.sleep(60)
        raise AssertionError("nobody waits so long")

    monkeypatch.setattr("dsv4.server.admin.engine.PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(server.generator, "report", late)

    async def run() -> list[httpx.Response]:
        async with server._http() as client:
            return await asyncio.gather(*(client.get("/admin/engine") for _ in range(5)))

    pages = asyncio.run(run())
    assert all(page.json()["report"] is None for page in pages)
    assert len(asked) == 1


def test_requests_have_the_order_of_the_engine(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    server = endless(serve, keys=KEYS)
    plain = server.generator.report

    async def turned() -> EngineReport:
        report = await plain()
        rows = list(reversed(report.requests))
        waiting = RequestReport(rows[1].label, "", False, 0, 5, 0, 0, 0, 9, 0, 0)
        return EngineReport(
            **{**{name: getattr(report, name) for name in EngineReport.__slots__}, "requests": (rows[0], waiting)}
        )

    monkeypatch.setattr(server.generator, "report", turned)

    async def use(client: httpx.AsyncClient, answers: Any) -> Any:
        return (await client.get("/admin/engine", headers=OP)).json()["requests"]

    assert [request["key"] for request in while_answering(server, use)] == ["bob", "ann"]


def test_rates() -> None:
    now = [100.0]
    rates = TokenRates(kept=3, clock=lambda: now[0])
    rates.add(prompt=7)
    rates.add(generated=1)
    now[0] = 99.0  # the clock was set back
    rates.add(generated=1)
    now[0] = 102.5
    rates.add(generated=4)
    assert rates.since() == {"now": 102, "kept": 3, "seconds": [[100, 7, 2], [102, 0, 4]]}
    assert rates.since(100)["seconds"] == [[102, 0, 4]]
    now[0] = 103.0
    rates.add(generated=1)
    assert [row[0] for row in rates.since()["seconds"]] == [102, 103]


def test_usage(serve: Converse, tmp_path: Path) -> None:
    server = serve("x", settings={"keys": KEYS})
    assert get(server, "/admin/usage", headers=OP) == {"ledger": False, "operator": True, "rows": []}
    ledger = server.app.state.backend.ledger = Ledger(tmp_path / "usage.sqlite")
    today = datetime.now(UTC).date().isoformat()
    for day, key in (("2026-01-02", "ann"), (today, "ann"), (today, "bob")):
        ledger.add(Usage(day, key, MODEL, 1, 100, 60, 10, 5, 0.5))
    ledger.close()
    assert [row["key"] for row in get(server, "/admin/usage", headers=OP)["rows"]] == ["ann", "ann", "bob"]
    assert [row["key"] for row in get(server, "/admin/usage?since=7d", headers=OP)["rows"]] == ["ann", "bob"]
    assert {row["key"] for row in get(server, "/admin/usage", headers=BOB)["rows"]} == {"bob"}
    wrong = server.request("GET", "/admin/usage?since=yesterday", headers=OP)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "since")


def write_run(folder: Path, count: int, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"step": i, "tokens": 10 * i, "phase": "dense", "next": 1 / (1 + i), **more} for i in range(count)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    with (folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_runs_are_listed(serve: Converse, tmp_path: Path) -> None:
    assert get(serve("x"), "/admin/runs") == {"folder": False, "runs": []}
    write_run(tmp_path / "chain" / "base", 5, samples=[{"prompt": "a"}])
    write_run(tmp_path / "new", 0)
    (tmp_path / "link").symlink_to(tmp_path / "chain" / "base")
    server = serve("x", settings={"runs": tmp_path})
    runs = {run["name"]: run for run in get(server, "/admin/runs")["runs"]}
    assert set(runs) == {"chain/base", "new"}
    assert runs["chain/base"]["last"] == {"step": 4, "tokens": 40, "phase": "dense", "next": 0.2}
    assert runs["new"]["last"] is None
    assert not runs["new"]["running"]
    with held(tmp_path / "chain" / "base"):
        assert {run["name"]: run["running"] for run in Runs(tmp_path).listed()} == {"chain/base": True, "new": False}


def test_only_operators_see_runs(serve: Converse, tmp_path: Path) -> None:
    write_run(tmp_path / "run", 3, samples=[{"prompt": "a"}])
    server = serve("x", settings={"runs": tmp_path, "keys": KEYS})
    for path in ("/admin/runs", "/admin/runs/run", "/v1/admin/runs/none"):
        refused = server.request("GET", path, headers=ANN)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert [run["name"] for run in get(server, "/admin/runs", headers=OP)["runs"]] == ["run"]
    assert get(server, "/admin/runs/run", headers=OP)["samples"]


def test_a_run_is_read_while_it_goes_on(serve: Converse, tmp_path: Path) -> None:
    log = write_run(tmp_path / "run", 3) / "log.jsonl"
    server = serve("x", settings={"runs": tmp_path})
    first = get(server, "/admin/runs/run")
    assert [line["step"] for line in first["lines"]] == [0, 1, 2]
    with log.open("a") as out:
        out.write('{"step": 3, "next": 0.25}\n{"step": 4, "ne')
    where = f"from={first['next']}&file={first['file']}"
    second = get(server, f"/admin/runs/run?{where}")
    assert [line["step"] for line in second["lines"]] == [3]
    assert not second["restarted"]
    with log.open("a") as out:
        out.write('xt": 0.2}\n')
    third = get(server, f"/admin/runs/run?from={second['next']}&file={second['file']}")
    assert third["lines"] == [{"step": 4, "next": 0.2}]
    # a run that resumes writes its log anew
    log.unlink()
    (tmp_path / "other").write_text("")
    write_run(tmp_path / "run", 2)
    again = get(server, f"/admin/runs/run?from={third['next']}&file={third['file']}")
    assert (again["restarted"], [line["step"] for line in again["lines"]]) == (True, [0, 1])


def test_a_long_log_is_thinned(tmp_path: Path) -> None:
    sample = [{"prompt": "p", "answer": "a", "reward": 1.0, "length": 3}]
    log = write_run(tmp_path / "long", 3 * MOST_LINES, samples=sample) / "log.jsonl"
    with log.open("a") as out:
        out.write('{"step": 6000, "spike": "loss", "back_to": 5990}\nnot JSON\n{"step": 6001, "next": NaN}\n')
    found = Runs(tmp_path).lines("long", 0, 0)
    assert found["every"] == 4
    assert len(found["lines"]) <= MOST_LINES + 2
    assert [line["step"] for line in found["lines"]][-2:] == [6000, 6001]
    assert found["lines"][-1]["next"] is None
    assert len(found["samples"]) == MOST_SAMPLES
    assert found["samples"][0] == {"step": 5999, **sample[0]}
    assert all("samples" not in line for line in found["lines"])


def test_a_large_log_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_run(tmp_path / "run", 50) / "log.jsonl"
    monkeypatch.setattr("dsv4.server.admin.runs.MOST_BYTES", 500)
    with log.open("a") as out:
        out.write("x" * 1200 + '\n{"step": 50}\n')
    at, file, steps = 0, log.stat().st_ino, []
    for _ in range(log.stat().st_size):
        piece = Runs(tmp_path).lines("run", at, file)
        if piece["next"] == at:
            break
        assert piece["next"] - at <= 500
        at, steps = piece["next"], [*steps, *(line["step"] for line in piece["lines"])]
    assert at == log.stat().st_size
    assert steps == list(range(51))


def test_only_the_newest_load_of_experts_is_sent(tmp_path: Path) -> None:
    log = write_run(tmp_path / "run", 3, expert_load={"1": [0.5, 1.5]}) / "log.jsonl"
    with log.open("a") as out:
        out.write('{"step": 3, "expert_load": {"1": [1.0, 1.0]}}\n{"step": 4}\n')
    found = Runs(tmp_path).lines("run", 0, 0)
    assert found["load"] == {"step": 3, "layers": {"1": [1.0, 1.0]}}
    assert all("expert_load" not in line for line in found["lines"])
    assert Runs(tmp_path).lines("run", found["next"], found["file"])["load"] is None


@pytest.mark.parametrize("name", ["../outside", "..", "none", "", "run/../../outside", "%2e%2e/outside"])
def test_only_listed_runs_are_read(serve: Converse, tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "outside", 1)
    write_run(tmp_path / "runs" / "run", 1)
    server = serve("x", settings={"runs": tmp_path / "runs"})
    assert server.request("GET", f"/admin/runs/{name}").status_code == 404
    assert server.request("GET", "/admin/runs/run?from=-1").status_code == 400


def test_model(serve: Converse) -> None:
    server = serve("x", settings={"keys": KEYS})
    assert get(server, "/admin/model", headers=ANN)["architecture"] is None
    calls: list[int] = []
    server.app.state.backend.architecture = lambda: calls.append(1) or {"layers": [1]}
    for _ in range(2):
        found = get(server, "/admin/model", headers=ANN)
        assert (found["model"], found["architecture"]) == (MODEL, {"layers": [1]})
    assert len(calls) == 1


def test_inspect(serve: Converse) -> None:
    server = serve("Paris is a city.", settings={"keys": KEYS})
    ask = {"messages": [{"role": "user", "content": "What is Paris? " * 4}], "max_tokens": 4}
    response = server.request("POST", "/admin/inspect", json=ask, headers=OP)
    assert response.status_code == 200, response.text
    found = response.json()
    (call,) = server.generator.calls
    assert call.params.trace
    assert not call.options.keep
    assert call.params.temperature == 0
    count = found["prompt_tokens"] + 4
    assert len(found["tokens"]) == count
    assert "".join(token["text"] for token in found["tokens"][-4:]) == server.tokenizer.decode(
        [token["id"] for token in found["tokens"][-4:]]
    )
    assert all(0 < token["probability"] <= 1 and token["top"] for token in found["tokens"][-4:])
    # the last sampled token was never read, so it has no row
    assert {layer: len(rows) for layer, rows in found["experts"].items()} == {"0": count - 1, "1": count - 1}
    assert found["experts"]["1"][2] == [3, 6]
    assert found["entries"]["1"][15] == [[1, 3]]
    assert found["drafts"] is None
    for body, param in (({}, "prompt"), ({**ask, "max_tokens": 0}, "max_tokens"), ({"prompt": "a " * 5000}, "prompt")):
        wrong = server.request("POST", "/admin/inspect", json=body, headers=OP)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, param), wrong.text
    assert server.request("POST", "/admin/inspect", json=ask, headers=ANN).status_code == 403
    assert server.request("POST", "/admin/inspect", json=ask).status_code == 401


def test_ranges() -> None:
    assert ranges(range(5)) == [[0, 5]]
    assert ranges(range(0)) == ranges([]) == []
    assert ranges([7, 1, 2, 3, 9, 8]) == [[1, 4], [7, 10]]
