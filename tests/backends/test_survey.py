"""What a server is asked at the start of `dsv4 serve --engine`."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse

from dsv4.backends.generator import RemoteGenerator
from dsv4.backends.http import HttpClient, ServerLostError
from dsv4.cli.engine_flags import EngineFlags
from dsv4.cli.remote_flags import KEY_VARIABLE, RemoteFlags, check_remote, remote_model
from dsv4.generation import FinishReason, SamplingParams
from dsv4.testing.engine_server import EngineServer
from dsv4.testing.stub import StubGenerator
from tests.backends.conftest import KINDS, Kind, Site, ask, run, told


@pytest.fixture
def folder(site: Site, tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(site.tokenizer._full.to_str(), encoding="utf-8")
    return tmp_path


def test_a_folder_with_a_tokenizer_is_enough(site: Site, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-1")
    servers = [site.server("vllm", StubGenerator([5], 300), key="sk-1"), site.server("sglang", StubGenerator([5], 200))]
    urls = [site.listen(server) for server in servers]
    for place in (folder, folder / "tokenizer.json"):
        model = remote_model(place, RemoteFlags((urls[0] + "/v1", urls[1])), EngineFlags())
        assert model.service.context_length == 200
        assert [line.split(" at ")[0] for line in model.lines] == ["engine 1: vllm 0.32.0", "engine 2: sglang 0.5.23"]
        assert ask(model.service, SamplingParams())[0].token == 5
    assert remote_model(folder, RemoteFlags((urls[0],)), EngineFlags(context=100)).service.context_length == 100
    with pytest.raises(ValueError, match="--context must be at most 300"):
        remote_model(folder, RemoteFlags((urls[0],)), EngineFlags(context=301))
    monkeypatch.setenv(KEY_VARIABLE, "sk-1\r\nx: y")
    with pytest.raises(ValueError, match=f"{KEY_VARIABLE} must be printable"):
        remote_model(folder, RemoteFlags((urls[0],)), EngineFlags())
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ValueError, match="answers 401: set DSV4_ENGINE_KEY"):
        remote_model(folder, RemoteFlags((urls[0],)), EngineFlags())


def test_servers_that_do_not_fit(site: Site) -> None:
    good = site.listen(site.server("vllm", StubGenerator([5])))
    other = site.listen(site.server("vllm", StubGenerator([5]), model="another"))
    strange = site.server("vllm", StubGenerator([5]))
    strange.tokenize = lambda text: [1, 2]
    unknown = site.server("vllm", StubGenerator([5]))
    unknown.kind = "llama.cpp"  # pyrefly: ignore
    with pytest.raises(ValueError, match="must serve the same model"):
        site.connect(good, other)
    with pytest.raises(ValueError, match="its tokenizer is another one"):
        site.connect(site.listen(strange))
    with pytest.raises(ValueError, match=r"neither vLLM nor SGLang .*--engine-kind"):
        site.connect(site.listen(unknown))
    with pytest.raises(ConnectionError, match="no server answers"):
        site.connect("http://127.0.0.1:9")
    # one that does not answer yet is taken for one like the first
    remote = site.connect("http://127.0.0.1:9", good)
    assert remote.counters()["remote_engines_lost"] == 1
    assert ask(remote, SamplingParams())[0].token == 5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until(remote: RemoteGenerator, lost: int, tries: int = 60) -> Callable[[], Awaitable[None]]:
    """Asks until so many servers count as lost: requests make the generator look at lost ones."""

    async def asked() -> None:
        for _ in range(tries):
            assert (await told(remote, SamplingParams()))[0].token == 5
            if remote.counters()["remote_engines_lost"] == lost:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{remote.counters()['remote_engines_lost']} are lost, not {lost}")

    return asked


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_comes_late_is_asked_what_it_is_and_used(site: Site, kind: Kind) -> None:
    port = free_port()
    remote = site.connect(site.listen(site.server("vllm", StubGenerator([5]))), f"http://127.0.0.1:{port}")
    late = site.server(kind, StubGenerator([5]))
    site.listen(late, port)
    run(until(remote, 0), remote)
    assert remote._replicas[1].protocol.kind == kind


@pytest.mark.parametrize("fault", ["model", "tokenizer", "context"])
def test_a_server_that_comes_late_with_another_model_is_not_used(
    site: Site, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port, wrong = free_port(), StubGenerator([7], 100 if fault == "context" else 65536)
    remote = site.connect(site.listen(site.server("vllm", StubGenerator([5]))), f"http://127.0.0.1:{port}")
    late = site.server("vllm", wrong, **({"model": "another"} if fault == "model" else {}))
    if fault == "tokenizer":
        late.tokenize = lambda text: [1, 2]
    site.listen(late, port)

    async def for_a_while() -> None:
        while remote._replicas[1].wait < 3:  # two looks
            await told(remote, SamplingParams())
            await asyncio.sleep(0.1)

    run(for_a_while, remote)
    assert not wrong.calls
    assert remote.counters()["remote_engines_lost"] == 1
    reasons = {
        "model": "serves another",
        "tokenizer": "its tokenizer is another one",
        "context": "has a context of 100",
    }
    assert capsys.readouterr().err.count(reasons[fault]) == 1, "told once, not at every look"
    # where it is the only one that is there, a request fails, and no other model answers it
    remote._replicas[0].lost(ServerLostError("gone"))
    remote._replicas[0].client = HttpClient(f"http://127.0.0.1:{free_port()}", None, 1.0)
    remote._replicas = remote._replicas[::-1]
    assert ask(remote, SamplingParams())[-1].finish is FinishReason.ERROR
    assert not wrong.calls


def test_what_a_server_does_not_tell_is_said(site: Site, folder: Path) -> None:
    silent = site.server("sglang", StubGenerator([5]))
    silent.tokenize = None
    told = remote_model(folder, RemoteFlags((site.listen(silent),)), EngineFlags()).lines
    assert "it has no /tokenize" in told[0]
    plain = site.server("vllm", StubGenerator([5]))
    assert "/tokenize" not in remote_model(folder, RemoteFlags((site.listen(plain),)), EngineFlags()).lines[0]


def test_the_line_of_a_server_tells_that_it_has_no_grammars_for_calls(site: Site, folder: Path) -> None:
    server = site.server("vllm", StubGenerator([5]))
    flags, sentence = RemoteFlags((site.listen(server),)), "--structured-outputs-config.backend guidance"
    assert sentence not in remote_model(folder, flags, EngineFlags()).lines[0]
    server.compile = None
    assert sentence in remote_model(folder, flags, EngineFlags()).lines[0]


def test_a_server_too_busy_to_try_a_grammar_is_used(site: Site, monkeypatch: Any) -> None:
    async def never(self: EngineServer, body: Any) -> JSONResponse:
        await asyncio.sleep(30)
        raise AssertionError

    monkeypatch.setattr(EngineServer, "_trial", never)
    monkeypatch.setattr("dsv4.backends.survey.TRIAL_SECONDS", 0.2)
    assert ask(site.remote(site.server("vllm", StubGenerator([5]))), SamplingParams())[0].token == 5


def test_a_version_in_another_form_is_none(site: Site, monkeypatch: Any) -> None:
    async def version(self: EngineServer, request: Any) -> JSONResponse:
        return JSONResponse(["0.32.0"])

    monkeypatch.setattr(EngineServer, "_version", version)
    assert ask(site.remote(site.server("vllm", StubGenerator([5]))), SamplingParams())[0].token == 5


def test_flags() -> None:
    url = "http://127.0.0.1:1"
    check_remote(RemoteFlags((url,)), EngineFlags(context=5, dialect="v4"))
    for remote, engine, message in (
        (RemoteFlags((url,)), EngineFlags(mode="bf16"), "--mode has no meaning"),
        (RemoteFlags((url,)), EngineFlags(memory="1GiB"), "--memory has no meaning"),
        (RemoteFlags(("gpu1:8000",)), EngineFlags(), "--engine must be http://host:port"),
        (RemoteFlags((url, url)), EngineFlags(), "named twice"),
        (RemoteFlags((url, url + "/v1/")), EngineFlags(), "named twice"),
        (RemoteFlags((url + "/?key=1",)), EngineFlags(), "--engine must be http://host:port"),
        (RemoteFlags((url + "/a b",)), EngineFlags(), "--engine must be http://host:port"),
        (
            RemoteFlags(("http://me:secret@127.0.0.1:1",)),
            EngineFlags(),
            "without a user or a password before the host$",
        ),
        (RemoteFlags((url,), engine_silence=0), EngineFlags(), "--engine-silence must be more than 0"),
        (RemoteFlags(engine_kind="vllm"), EngineFlags(), "--engine-kind needs --engine"),
    ):
        with pytest.raises(ValueError, match=message):
            check_remote(remote, engine)
