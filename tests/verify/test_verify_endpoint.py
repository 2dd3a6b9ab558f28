"""Endpoints that hang, never end, break off or are something else: each ends with a sentence, and in time."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from dsv4.cli.verify import verify as run_verify
from dsv4.files import write_whole
from dsv4.verify.endpoint import Endpoint, RefusedError, TimeUp, UnreachableError
from dsv4.verify.findings import CheckResult, Finding, Report, Severity
from dsv4.verify.fixture_file import read_fixtures
from tests.verify.raw_server import STREAM, Answer, drips, is_silent, raw_server, says

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
HTML = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<!doctype html><title>A page</title>"
BODY = {"messages": []}


@pytest.mark.parametrize(
    "answer",
    [
        is_silent,
        drips(OK + b"content-length: 999999\r\n\r\n", b" "),
        drips(OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        drips(STREAM, b": still here\n\n"),
        drips(STREAM, b"x"),
    ],
    ids=["silent", "a body", "chunks", "comments", "a line"],
)
def test_the_time_of_the_run_ends_every_answer(answer: Answer) -> None:
    with raw_server(answer) as url:
        for ask in ("chat", "stream"):
            began = time.monotonic()
            endpoint = Endpoint(url, until=began + 0.3)
            with pytest.raises(TimeUp):
                getattr(endpoint, ask)(BODY)
            assert time.monotonic() - began < 15


def test_silence_is_told_with_its_length() -> None:
    with raw_server(is_silent) as url, pytest.raises(UnreachableError, match=r"said nothing for 0\.2 s"):
        Endpoint(url, silence=0.2).chat(BODY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (OK + b"content-length: 50\r\n\r\n{}", "cannot be used: IncompleteRead|cannot be used: .*more expected"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be used: SSH-2.0-OpenSSH"),
        (b"", "cannot be used: "),
    ],
    ids=["cut off", "no HTTP", "closed"],
)
def test_what_is_no_answer_is_told(data: bytes, message: str) -> None:
    with raw_server(says(data)) as url, pytest.raises(UnreachableError, match=message):
        Endpoint(url).chat(BODY)


def test_a_page_is_no_answer() -> None:
    with raw_server(says(HTML)) as url, pytest.raises(RefusedError, match="status 200: <!doctype html><title>A page"):
        Endpoint(url).chat(BODY)


def test_a_body_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.verify.endpoint.MOST_BODY", 200_000)
    for head in (OK + b"\r\n", STREAM + b"data: "):
        with raw_server(drips(head, b"x" * 65536, 0.0)) as url:
            for ask in (Endpoint(url).chat, Endpoint(url).stream):
                with pytest.raises(UnreachableError, match="more than 200,000 bytes"):
                    ask(BODY)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://user:secret@127.0.0.1:9", "without a user or a password"),
        ("http://127.0.0.1:9/?key=secret", "URL must be http://host:port"),
        ("http://127.0.0.1:9/v1#x", "URL must be http://host:port"),
        ("http://127.0.0.1:9/a b", "URL must be http://host:port"),
    ],
)
def test_addresses_that_are_no_servers(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Endpoint(url)
    assert "user:secret" not in str(refused.value)


def test_a_key_with_a_line_end_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="the key must be printable, without line ends") as refused:
        Endpoint("http://127.0.0.1:9", key="sk-4711\nx: y")
    assert "4711" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "minutes", "message"),
    [
        (says(HTML), 5, "cannot be checked: status 200: <!doctype html>"),
        (is_silent, 0.005, "cannot be checked: it did not tell what it can do within --minutes"),
    ],
    ids=["a page", "silent"],
)
def test_the_command_says_why_nothing_was_checked(
    answer: Answer, minutes: float, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with raw_server(answer) as url, pytest.raises(SystemExit) as ended:
        run_verify(url, minutes=minutes)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_report_holds_what_is_no_unicode_and_one_file_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = CheckResult("surface", "?")
    result.findings.append(Finding("surface", "stop-string", Severity.FAULT, "a", "half: \ud83d", "curl"))
    found = Report("http://127.0.0.1:9", "m", "", {}, [result])
    monkeypatch.setattr("dsv4.cli.verify._run", lambda *_: found)
    html, data = tmp_path / "x.html", tmp_path / "x.json"
    with pytest.raises(SystemExit):
        run_verify(found.target, report=html, json=data)
    assert "half: \\ud83d" in html.read_text(encoding="utf-8")
    assert json.loads(data.read_text(encoding="utf-8"))["results"][0]["findings"][0]["got"] == "half: \ud83d"

    def full(file: Path, write: Callable[[BinaryIO], object]) -> None:
        if file == html:
            raise OSError(28, "No space left on device", str(file))
        write_whole(file, write)

    monkeypatch.setattr("dsv4.files.write_whole", full)
    data.unlink()
    capsys.readouterr()
    with pytest.raises(OSError, match="No space left"):
        run_verify(found.target, report=html, json=data)
    assert data.is_file()
    assert "surface.stop-string" in capsys.readouterr().out, "what was found is told before files are written"


GOOD = {"id": "a", "messages": [{"role": "user", "content": "x"}], "tokens": [{"bytes": [97], "logprob": -0.5}]}


def test_fixtures_may_hold_line_separators(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    message = {"role": "user", "content": "one\u2028two\x85three"}
    file.write_text(json.dumps({**GOOD, "messages": [message]}, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (fixture,) = read_fixtures(file)
    assert fixture.messages == (message,)


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b"5", b"\xff", b"[" * 200_000, b'{"messages": 5, "tokens": []}',
        *(
            json.dumps({**GOOD, "tokens": [token]}).encode()
            for token in (
                5, {"bytes": [300], "logprob": -1}, {"bytes": "a", "logprob": -1},
                {"bytes": [97], "logprob": float("nan")}, {"bytes": [97], "logprob": 10**400},
                {"bytes": [97], "logprob": -1, "top": 7},
            )
        ),
    ],
)  # fmt: skip
def test_a_broken_line_of_fixtures_is_named(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"{file}, line 2: no fixture"):
        read_fixtures(file)
