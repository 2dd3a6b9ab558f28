"""`dsv4 serve` as a process, with the stub in place of a model: ready line, answers, signals."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from dsv4.cli.serve import open_listener, ready_text
from dsv4.cli.server_flags import KEYS_VARIABLE, ServerFlags, read_keys
from dsv4.encoding import Tokenizer
from dsv4.server.accounts.ledger import read_usage

# replaces dsv4.api.loading, so that no model and no torch is loaded
PROGRAM = """
import sys, types
from pathlib import Path
from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingDefaults
from dsv4.testing.stub import StubGenerator

class Service(StubGenerator):
    def counters(self):
        return {"running": 1, "pages": 4, "pages_free": 3}

    def close(self):
        print("closed", file=sys.stderr)

def load(folder, **options):
    tokenizer = Tokenizer.load(folder)
    script = [*tokenizer.encode_text("why</think>because", trusted=True), tokenizer.eos_id]
    service = Service(script, delay=float(sys.argv[2]))
    return types.SimpleNamespace(
        tokenizer=tokenizer, service=service, name="stub", mode="fp32", defaults=SamplingDefaults(),
        memory_text=lambda: "memory", config=None,
    )

sys.modules["dsv4.api.loading"] = types.SimpleNamespace(load=load)
# the flags make a policy of kept prefixes; no torch here
sys.modules["dsv4.cache.prefix"] = types.SimpleNamespace(ReusePolicy=lambda *fields: fields)
from dsv4.cli.serve import serve
serve(Path(sys.argv[1]), port=0)
"""
BODY = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="session")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "tokenizer.json"
    # the backend writes the definition it was built from
    file.write_text(tokenizer._full.to_str(), encoding="utf-8")
    return file.parent


@contextmanager
def serving(folder: Path, delay: float = 0.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(delay)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "XDG_DATA_HOME": str(folder)}
    )
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == "memory\n"
        ready = process.stderr.readline()
        if ready.startswith("pages: "):  # those in web/ are not built
            ready = process.stderr.readline()
        assert ready.startswith("ready in "), ready + process.stderr.read()
        yield process, ready.split(" - ")[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_serves_and_stops_on_a_signal(folder: Path, kind: signal.Signals) -> None:
    with serving(folder) as (process, url):
        answer = httpx.post(f"{url}/v1/chat/completions", json=BODY).json()
        assert answer["choices"][0]["message"]["content"] == "because"
        process.send_signal(kind)
        assert process.wait(10) == 0
        assert process.stderr is not None
        text = process.stderr.read()
        assert text.endswith("stopped\nclosed\n")
        assert "Traceback" not in text


def test_usage_outlives_the_server(folder: Path) -> None:
    file = folder / "dsv4" / "usage.sqlite"
    before = sum(row.requests for row in read_usage(file)) if file.exists() else 0
    with serving(folder) as (process, url):
        for _ in range(3):
            httpx.post(f"{url}/v1/chat/completions", json=BODY)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert sum(row.requests for row in read_usage(file)) == before + 3


def test_ledger_and_prices_by_flag(tmp_path: Path) -> None:
    assert ServerFlags(ledger=Path("none")).open_files()["ledger"] is None
    ledger = ServerFlags(ledger=tmp_path / "own.sqlite").open_files()["ledger"]
    assert ledger is not None
    ledger.close()
    assert (tmp_path / "own.sqlite").is_file()
    (tmp_path / "prices.toml").write_text("[default]\nhit = 0\nmiss = 0\noutput = 1\n")
    prices = ServerFlags(prices=tmp_path / "prices.toml").settings("127.0.0.1").prices
    assert prices.cost("x", hit=9, miss=9, output=10**6, at=datetime(2026, 11, 22, tzinfo=UTC)) == 1.0


def test_a_running_answer_is_finished_before_the_stop(folder: Path) -> None:
    with (
        serving(folder, delay=0.1) as (process, url),
        httpx.stream("POST", f"{url}/chat/completions", json={**BODY, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert "data: [DONE]" in [*lines]
        assert process.wait(10) == 0


def test_a_second_signal_hurries(folder: Path) -> None:
    with (
        serving(folder, delay=0.4) as (process, url),
        httpx.stream("POST", f"{url}/chat/completions", json={**BODY, "stream": True, "max_tokens": 9}) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        for _ in range(3):
            next(lines)  # it goes on for now
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert "the server is stopping" in rest[-1] or rest[-1] == "data: [DONE]"
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "::", "example.com"])
def test_only_this_machine_may_connect(host: str) -> None:
    with pytest.raises(ValueError, match="host must be an address of this machine"):
        ServerFlags().settings(host)
    assert not ServerFlags(insecure=True).settings(host).local_only


def test_busy_port_is_named() -> None:
    with open_listener("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 is in use"):
            open_listener("127.0.0.1", port)


def test_keys_of_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# who\nann secret-of-ann\n\nlonely-key-1\n")
    keys = read_keys(file, "bob secret-of-bob,another-key")
    texts = ("secret-of-ann", "lonely-key-1", "secret-of-bob", "another-key", "wrong")
    assert [keys.name_of(text) for text in texts] == ["ann", "key4", "bob", "env2", None]
    assert not read_keys(None, "")
    with pytest.raises(ValueError, match="line 1: expected a name and a key") as caught:
        read_keys(None, "short")
    assert "short" not in str(caught.value)
    file.write_bytes(b"ann secret-of-\xff\xfe")
    with pytest.raises(ValueError, match=f"{file}: not a text in UTF-8"):
        read_keys(file, "")
    file.write_text("\ufeffann secret-of-ann\n")
    assert read_keys(file, "").name_of("secret-of-ann") == "ann"
    with pytest.raises(ValueError, match="two keys are named 'ann'"):
        read_keys(file, "ann secret-of-eve")
    file.write_text("lonely-key-1")
    assert len({name for name, _ in read_keys(file, "another-key").entries}) == 2
    file.write_text("# nobody\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(file, "")


def test_with_keys_others_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "ann secret-of-ann")
    settings = ServerFlags(any_model=True, requests=3).settings("0.0.0.0")
    assert settings.keys.name_of("secret-of-ann") == "ann"
    assert (settings.local_only, settings.any_model, settings.max_requests) == (False, True, 3)


def test_calls_are_free_by_flag_and_with_engines_elsewhere() -> None:
    assert not ServerFlags().settings("127.0.0.1").free_calls
    assert ServerFlags(free_calls=True).settings("127.0.0.1").free_calls
    assert ServerFlags().settings("127.0.0.1", remote=True).free_calls


def test_ready_text_can_be_copied() -> None:
    text = ready_text("nano", "http://127.0.0.1:8000", 1048576, 1.23)
    assert text.startswith("ready in 1.2 s - http://127.0.0.1:8000 - nano - context 1048576\n")
    assert "OPENAI_BASE_URL=http://127.0.0.1:8000/v1" in text
    assert """-d '{"model": "nano", "messages": [{"role": "user",""" in text
