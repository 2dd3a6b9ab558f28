"""Prices, the ledger, `dsv4 usage`, and what a key may use."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dsv4.cli.usage import usage
from dsv4.server import ApiError, Keys
from dsv4.server.accounts.ledger import Ledger, Usage, first_day, read_usage
from dsv4.server.accounts.prices import Prices
from dsv4.server.guard.limits import KeyLimits, UsageLimits
from tests.server.conftest import Converse, Server

SECRETS = {"ann": "secret-of-ann", "bob": "secret-of-bob"}
QUIET, PEAK = datetime(2026, 11, 22, 2, tzinfo=UTC), datetime(2026, 11, 23, 2, tzinfo=UTC)  # Sunday, Monday


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "usage.sqlite"


@pytest.fixture
def server(serve: Converse, file: Path) -> Iterator[Server]:
    keys = Keys.parse([f"{name} {secret}" for name, secret in SECRETS.items()])
    (file.parent.parent / "prices.toml").write_text("[default]\nhit = 1\nmiss = 2\noutput = 3\n")
    prices = Prices.load(file.parent.parent / "prices.toml")
    server = serve("why</think>Yes.", reused=2, settings={"keys": keys, "prices": prices})
    ledger = server.app.state.backend.ledger = Ledger(file)
    yield server
    ledger.close()


def ask(server: Server, name: str, path: str = "/v1/chat/completions", **fields: object) -> object:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50, **fields}
    response = server.request("POST", path, json=body, headers={"authorization": f"Bearer {SECRETS[name]}"})
    assert response.status_code == 200, response.text
    return response.text if fields.get("stream") else response.json()


def test_published_prices() -> None:
    cost = Prices().cost
    million = {"hit": 1_000_000, "miss": 1_000_000, "output": 1_000_000}
    may, august, october = (datetime(2026, month, 21, 5, tzinfo=UTC) for month in (5, 8, 10))
    flash, launched = 0.003 + 0.15 + 0.6, 0.0028 + 0.14 + 0.28
    assert cost("DeepSeek-V4-Flash-0731", **million, at=QUIET) == pytest.approx(flash)
    assert cost("deepseek-v4-flash", **million, at=may) == pytest.approx(launched)
    assert cost("deepseek-v4-flash", **million, at=PEAK) == pytest.approx(2 * flash)
    assert cost("deepseek-v4-flash", **million, at=PEAK.replace(month=6)) == pytest.approx(launched)
    assert cost("deepseek-v4-pro", hit=0, miss=10**6, output=10**6, at=may) == pytest.approx(1.74 + 3.48)
    assert cost("deepseek-v4-pro[1m]", **million, at=august) == pytest.approx(0.022 + 0.66 + 1.98)
    assert cost("deepseek-v4-pro", **million, at=october) == pytest.approx(flash)  # billed as Flash since September
    assert cost("nano", **million, at=PEAK, asked="deepseek-v4-pro") == 0.0


def test_prices_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text("[mine]\nhit = 0\nmiss = 1\noutput = 2\n")
    prices = Prices.load(file)
    assert prices.cost("mine", hit=5, miss=1_000_000, output=1_000_000, at=PEAK) == pytest.approx(3.0)
    assert prices.cost("nano", hit=5, miss=0, output=1_000_000, at=PEAK, asked="Mine-large") == pytest.approx(2.0)
    assert prices.cost("deepseek-v4-pro", hit=0, miss=1_000_000, output=0, at=QUIET) == pytest.approx(0.15)
    for text, problem in (
        ("[mine]\nhit = 1\nmiss = 1\n", r"mine\.output: must be a number"),
        ("[mine]\nhit = -1\nmiss = 1\noutput = 1\n", r"mine\.hit: must be a number of at least 0, got -1"),
        ("[mine]\nhit = 1\nmiss = 1\noutput = 1\nbulk = 1\n", r"mine\.bulk: unknown, expected one of hit"),
        ("mine = 3", "mine: expected a table"),
        ("[", "not a TOML file"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=problem):
            Prices.load(file)


def test_requests_are_counted_by_key_and_model(server: Server, file: Path) -> None:
    whole = ask(server, "ann")
    ask(server, "ann", stream=True)
    ask(server, "bob", "/v1/messages", model="claude-opus-5")
    backend = server.app.state.backend
    backend.ledger.close()
    ann, bob = read_usage(file)
    assert (ann.key, ann.model, ann.requests) == ("ann", "tiny", 2)
    counts = whole["usage"]
    assert (ann.prompt, ann.cached) == (2 * counts["prompt_tokens"], 4)
    assert ann.completion == 2 * counts["completion_tokens"]
    assert ann.reasoning == 2 * counts["completion_tokens_details"]["reasoning_tokens"] > 0
    assert (bob.key, bob.model, bob.requests) == ("bob", "claude-opus-5", 1)
    assert backend.metrics.cost == pytest.approx(ann.cost + bob.cost)
    assert ann.cost == pytest.approx((4 + 2 * (ann.prompt - 4) + 3 * ann.completion) / 1e6)
    assert "dsv4_cost_usd_total" in backend.metrics.text(0, {})
    stored = b"".join(part.read_bytes() for part in file.parent.iterdir())
    assert not any(secret.encode() in stored for secret in SECRETS.values())


def test_refused_requests_are_not_counted(server: Server, file: Path) -> None:
    headers = {"authorization": f"Bearer {SECRETS['ann']}"}
    assert server.request("POST", "/v1/chat/completions", json={"messages": []}, headers=headers).status_code == 400
    long = {"messages": [{"role": "user", "content": "x " * 5000}]}
    assert server.request("POST", "/v1/chat/completions", json=long, headers=headers).status_code == 400
    server.app.state.backend.ledger.close()
    assert read_usage(file) == []


def test_a_locked_ledger_delays_nobody(server: Server, file: Path) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        # answered while the file cannot be written: were it waited for, this would hang until the lock times out
        for _ in range(3):
            ask(server, "ann")
        assert other.execute("SELECT count(*) FROM usage").fetchone() == (0,)
        other.rollback()
    server.app.state.backend.ledger.close()
    assert [row.requests for row in read_usage(file)] == [3]


def test_what_cannot_be_written_is_tried_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.server.accounts.ledger.BUSY_SECONDS", 0.01)
    ledger = Ledger(file, retry=0.05)
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(3):
            ledger.add(Usage("2026-11-20", "ann", "nano", 1, 100, 60, 10, 5, 0.5))
        other.rollback()
        while not (rows := read_usage(file)) or rows[0].requests < 3:  # and no further request comes
            time.sleep(0.01)
    assert ledger.close() == 0


def test_usage_that_is_lost_is_said(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dsv4.server.accounts.ledger.BUSY_SECONDS", 0.01)
    ledger = Ledger(file)
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for name in ("ann", "bob", "ann"):
            ledger.add(Usage("2026-11-20", name, "nano", 1, 100, 60, 10, 5, 0.5))
        assert ledger.close() == 2
    lines = map(json.loads, capsys.readouterr().err.splitlines())
    lost = [line for line in lines if line["event"] == "usage_lost"]
    assert [(row["key"], row["requests"], row["prompt"]) for row in lost] == [("ann", 2, 200), ("bob", 1, 100)]


def test_a_ledger_is_private_and_bounded(file: Path) -> None:
    ledger = Ledger(file)
    names = ["claude-" + "x" * 100_000, "claude-\x1b]0;title\x07\u009b31m", *(f"claude-{i}" for i in range(300))]
    for name in names:
        ledger.add(Usage("2026-11-20", "ann", name, 1, 100, 60, 10, 5, 0.5))
    ledger.close()
    assert all(part.stat().st_mode & 0o077 == 0 for part in (file.parent, *file.parent.iterdir()))
    rows = read_usage(file)
    assert len(rows) == 101
    assert sum(row.requests for row in rows) == len(names)
    assert all(len(row.model) <= 64 and row.model.isprintable() for row in rows)
    assert "other" in {row.model for row in rows}


def test_broken_ledgers_are_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE usage (day TEXT)")
    for place in (tmp_path, tmp_path / "file" / "usage.sqlite", other, Path("/proc/nowhere/usage.sqlite")):
        with pytest.raises(OSError, match=f"^{place}: cannot be used as a ledger"):
            Ledger(place)


def test_the_table_shows_no_escapes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger(file).close()
    with closing(sqlite3.connect(file)) as connection, connection:  # as an older server wrote it
        for name in ("\x1b[31mred", "\u009b31m", "y" * 100_000):
            connection.execute("INSERT INTO usage VALUES ('2026-11-20', 'ann', ?, 1, 1, 1, 1, 1, 0.5)", [name])
    usage(ledger=file)
    out = capsys.readouterr().out
    assert not any(char in out for char in "\x1b\u009b")
    assert max(map(len, out.splitlines())) < 200


def test_no_ledger_in_a_file_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to look at " * 50)
    with pytest.raises(OSError, match="cannot be used as a ledger"):
        Ledger(file)
    with pytest.raises(ValueError, match="not a ledger"):
        read_usage(file)
    with pytest.raises(FileNotFoundError, match="no ledger there yet"):
        read_usage(tmp_path / "none")


def test_usage_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(file)
    ledger.add(Usage("2026-11-20", "ann", "nano", 1, 100, 60, 10, 5, 0.5))
    ledger.add(Usage("2026-11-21", "", "nano", 1, 200, 0, 20, 0, 0.25))
    ledger.add(Usage("2026-11-21", "", "nano", 1, 200, 0, 20, 0, 0.25))
    ledger.close()
    usage(ledger=file)
    head, first, second, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["day", "key", "model", "requests", "prompt", "cached", "completion", "reasoning", "USD"]
    assert first.split() == ["2026-11-20", "ann", "nano", "1", "100", "60", "10", "5", "0.500000"]
    assert second.split() == ["2026-11-21", "-", "nano", "2", "400", "0", "40", "0", "0.500000"]
    assert total.split() == ["total", "3", "500", "60", "50", "5", "1.000000"]
    usage(ledger=file, since="2026-11-21", json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["day"], row["requests"], row["cost"]) == ("2026-11-21", 2, 0.5)
    usage(ledger=file, key="ann", json=True)
    assert [row["key"] for row in json.loads(capsys.readouterr().out)] == ["ann"]
    assert first_day("7d", PEAK) == "2026-11-16"
    with pytest.raises(ValueError, match="since must be a day"):
        usage(ledger=file, since="yesterday")


class Clock:
    """A time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 86_400.0 * 20_000

    def __call__(self) -> float:
        return self.now


def refused(admit: Callable[[], None]) -> tuple[str, int]:
    """The message and the seconds of a refusal."""
    with pytest.raises(ApiError) as caught:
        admit()
    assert caught.value.status == 429
    return caught.value.message, int((caught.value.headers or {})["retry-after"])


def test_limits_by_key() -> None:
    clock = Clock()
    limits = UsageLimits(
        {"a": KeyLimits(requests=2), "b": KeyLimits(tokens=100), "c": KeyLimits(day=100), "d": KeyLimits(concurrent=1)},
        clock,
        clock,
    )
    for _ in range(9):
        limits.admit("other", 10**9)
    limits.enter("a")
    clock.now += 20
    limits.enter("a")
    assert refused(lambda: limits.enter("a")) == (
        "this key may use 2 requests per minute; try again in 40 seconds",
        40,
    )
    clock.now += 40
    limits.enter("a")
    limits.admit("b", 60)
    limits.spend("b", 30)
    assert "100 tokens per minute" in refused(lambda: limits.admit("b", 11))[0]
    limits.admit("b", 10)
    clock.now += 60
    limits.admit("b", 500)  # alone in its minute
    limits.admit("c", 90)
    limits.spend("c", 20)
    assert refused(lambda: limits.admit("c", 1))[1] == 86_400 - 120
    clock.now += 86_400 - 120
    limits.admit("c", 1)
    limits.enter("d")
    refused(lambda: limits.enter("d"))
    limits.leave("d")
    limits.enter("d")


def test_a_clock_set_back_keeps_nobody_out() -> None:
    clock, wall = Clock(), Clock()
    limits = UsageLimits({"a": KeyLimits(requests=1, tokens=100, day=500)}, clock, wall)
    limits.enter("a")
    limits.admit("a", 90)
    wall.now -= 3 * 86_400  # only the minutes of the steady clock count
    clock.now += 61
    limits.enter("a")
    limits.admit("a", 90)
    clock.now -= 3 * 86_400  # and were that set back, a minute would be enough
    assert refused(lambda: limits.enter("a"))[1] <= 60
    assert refused(lambda: limits.admit("a", 90))[1] <= 60
    clock.now += 61
    limits.enter("a")
    limits.admit("a", 90)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/messages/count_tokens", "/responses/input_tokens"])
def test_routes_that_only_count_are_under_the_limits(serve: Converse, path: str) -> None:
    server = serve("x", settings={"keys": Keys.parse(["ann secret-of-ann requests=2"])})
    body = {"messages": [{"role": "user", "content": "Hi"}], "input": "Hi", "tokens": [5]}
    headers = {"authorization": f"Bearer {SECRETS['ann']}"}
    answers = [server.request("POST", path, json=body, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


def test_two_keys_are_never_one() -> None:
    for lines in (["ann first-secret", "ann second-secret"], ["ann one-secret", "bob one-secret"]):
        with pytest.raises(ValueError, match="ann") as caught:
            Keys.parse(lines, "file")
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="line 1: a name has at most 64"):
        Keys.parse(["a\x1b[31m long-secret"])


def test_limits_of_the_key_file() -> None:
    keys = Keys.parse(["ann secret-of-ann requests=60 concurrent=4", "secret-of-bob day=9", "c secret=of=carl"])
    assert keys.limits == {"ann": KeyLimits(requests=60, concurrent=4), "key2": KeyLimits(day=9)}
    assert [keys.name_of(s) for s in ("secret-of-ann", "secret-of-bob", "secret=of=carl")] == ["ann", "key2", "c"]
    for line, problem in (
        ("a long-secret speed=3", "line 1: expected a limit as"),
        ("a long-secret day=0", "at least 1"),
    ):
        with pytest.raises(ValueError, match=problem) as caught:
            Keys.parse([line])
        assert "long-secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_key_over_its_limit_is_told_when_to_come_back(serve: Converse, path: str) -> None:
    server = serve("why</think>Yes.", settings={"keys": Keys.parse(["ann secret-of-ann requests=1"])})
    ask(server, "ann", path)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    response = server.request("POST", path, json=body, headers={"authorization": f"Bearer {SECRETS['ann']}"})
    assert response.status_code == 429
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert server.app.state.backend.running == 0
