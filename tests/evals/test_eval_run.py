"""Runs against a server of ours with a stub for a model: through inspect-ai, kept, resumed, compared, shown."""

import gc
import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dsv4.cli.eval import BELOW, MISSING
from dsv4.cli.eval import eval as run_eval
from dsv4.cli.eval_flags import AskingFlags, OutcomeFlags
from dsv4.encoding import Tokenizer
from dsv4.evals.kept import ANSWERS, REPORT, RESULT, KeptAnswer, RunFolder, read_run
from dsv4.evals.registry import suite_named, suite_names
from dsv4.evals.run import EvalSettings, TokenPrice, early_plan, make_plan
from dsv4.evals.suite import Mode
from dsv4.generation import SamplingParams
from dsv4.server import Keys
from dsv4.testing.stub import StubGenerator
from dsv4.verify.endpoint import Endpoint
from tests.conftest import ROOT
from tests.server.conftest import Server, listening
from tests.verify.raw_server import raw_server, says

pytest.importorskip("inspect_ai")
pytestmark = [  # of libraries: inspect-ai and below it
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _unclosed_streams() -> Iterator[None]:
    """inspect-ai leaves streams unclosed, in cycles. They are collected while that is ignored: else the warning fails
    a later test of another file, whichever collects."""
    yield
    gc.collect()


# a word of each question of the stand-in of GSM8K, and its answer
RIGHT = {"baker": "49", "Mira": "170", "ticket": "30", "tank": "20", "bill": "35", "48 hens": "20"}
Said = Callable[[str], str]


def server(tokenizer: Tokenizer, said: Said, **options: Any) -> Server:
    def script(prompt: Sequence[int], params: SamplingParams) -> Sequence[int]:
        end = [] if "error" in options else [tokenizer.eos_id]
        return [*tokenizer.encode_text(said(tokenizer.decode(prompt)), trusted=True), *end]

    return Server(tokenizer, StubGenerator(script, 65536, **options))


def right(prompt: str) -> str:
    return f"Thus</think>It is \\boxed{{{next(a for word, a in RIGHT.items() if word in prompt)}}}."


def start(target: str, out: Path, suite: str = "gsm8k", **options: Any) -> None:
    """`dsv4 eval` with flags by their names."""
    given = {"data": "stand-in", "out": out, **options}
    kinds = {"asking": AskingFlags, "outcome": OutcomeFlags}
    flags = {
        name: kind(**{flag: given.pop(flag) for flag in kind.__dataclass_fields__ if flag in given})
        for name, kind in kinds.items()
    }
    run_eval(target, suite=suite, **flags, **given)  # type: ignore[arg-type]


def code(target: str, out: Path, suite: str = "gsm8k", **options: Any) -> int:
    with pytest.raises(SystemExit) as exit:
        start(target, out, suite, **options)
    return int(str(exit.value.code))


def test_a_run_from_the_command_line(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    stub = server(tokenizer, lambda prompt: right(prompt) if "48 hens" not in prompt else "Hm</think>\\boxed{<b>}")
    with listening(stub) as url:
        assert code(url, out, mode="max", max_tokens=64, least=90.0) == BELOW
        assert code(url, out, mode="max", max_tokens=64, least=80.0) == 0, "a complete run is only shown"
    assert len(stub.generator.calls) == 6
    params = stub.generator.calls[0].params
    assert (params.temperature, params.top_p, params.max_tokens) == (1.0, 1.0, 64)
    assert len({call.params.seed for call in stub.generator.calls}) == 6
    result = json.loads((out / RESULT).read_text())
    assert result["score"]["value"] == pytest.approx(100 * 5 / 6)
    assert result["score"]["error"] == pytest.approx(100 / 6)
    assert (result["missing"], result["mode"], result["model"]) == (0, "max", "tiny")
    assert len(result["data"]["sha256"]["gsm8k.jsonl"]) == 64
    report = (out / REPORT).read_text()
    assert "92.6" in report
    assert "&lt;b&gt;" in report
    assert "<b>}" not in report
    assert "83.3 ± 16.7" in capsys.readouterr().out
    wrong = next(kept for kept in read_run(out)[1] if kept.graded.value == 0)
    assert (wrong.target, wrong.found, wrong.answer["reasoning"]) == ("20", "<b>", "Hm")
    assert list((out / "inspect").glob("*.eval"))


def test_a_run_leaves_the_logs_of_the_process_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with listening(server(tokenizer, right)) as url:
        assert code(url, tmp_path / "run", limit=1) == 0
    assert (root.level, root.handlers) == before


def test_a_stopped_run_goes_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stub = server(tokenizer, right)
    with listening(stub) as url:
        assert code(url, out, samples=2) == 0
        file = out / ANSWERS
        lines = file.read_text().splitlines(keepends=True)
        assert len(lines) == 12
        file.write_text("".join(lines[:7]) + lines[7][:40])  # killed while it wrote
        assert code(url, out, samples=2) == 0
        assert len(stub.generator.calls) == 12 + 5
        assert len(file.read_text().splitlines()) == 12
        with pytest.raises(ValueError, match=r"--out .* has a run with .*mode .*high.*, not .*max"):
            start(url, out, samples=2, mode="max")
    plan = make_plan(EvalSettings(suite_named("gsm8k"), place="stand-in"))
    done = RunFolder(out, read_run(out)[0], plan.items).done()
    assert len(done) == 12


def test_two_runs_are_compared(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(server(tokenizer, right)) as url:
        assert code(url, tmp_path / "a", mode="non-think") == 0
    with listening(server(tokenizer, lambda prompt: "None</think>\\boxed{0}")) as url:
        assert code(url, tmp_path / "b", compare=tmp_path / "a", max_tokens=64) == 0
        with pytest.raises(ValueError, match=r"settings\.json is missing"):
            start(url, tmp_path / "c", compare=tmp_path)
    found = json.loads((tmp_path / "b" / RESULT).read_text())["comparison"]
    assert (found["difference"], found["losses"], found["test"]) == (-100, 6, "McNemar, exact")
    assert found["probability"] == pytest.approx(2 / 64)
    assert "worse in 6" in capsys.readouterr().out


def test_a_dry_run_gets_four_answers_and_tells_the_rest(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = server(tokenizer, right)
    with listening(stub) as url:
        start(url, tmp_path / "a", dry_run=True, price="1000,2000")
        assert len(stub.generator.calls) == 4
        assert "estimate from 4 answers: 2 more" in capsys.readouterr().out
        assert code(url, tmp_path / "a") == 0
    assert len(stub.generator.calls) == 6, "the answers of the dry run count"


def test_an_endpoint_that_fails(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.evals.retries.WAITS", ())
    with listening(server(tokenizer, right, error="broken")) as url:
        assert code(url, tmp_path / "a", limit=2) == MISSING
    result = json.loads((tmp_path / "a" / RESULT).read_text())
    assert (result["answers"], result["missing"]) == (0, 2)
    assert sum(result["problems"].values()) == 2
    assert not any("Error(" in reason for reason in result["problems"]), "sentences, no code"
    assert "No answer" in (tmp_path / "a" / REPORT).read_text()


def test_what_is_wrong_before_a_run_is_told_by_flag(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with listening(server(tokenizer, lambda prompt: "Hm</think>forty-two")) as url:
        with pytest.raises(ValueError, match=r"^--judge: http://127\.0\.0\.1:9 cannot be used"):
            start(url, tmp_path / "a", suite="hle", judge="http://127.0.0.1:9", max_tokens=16)
        assert code(url, tmp_path / "a", suite="hle", max_tokens=16) == 0, "no answer, so no run to protect"
    with pytest.raises(ValueError, match="--judge-model is the name of a model at --judge, which is not given"):
        start("localhost:8000", tmp_path / "b", suite="hle", judge_model="m")
    with pytest.raises(ValueError, match="TARGET must be http://HOST:PORT, a model folder or its name, got 'localhost"):
        start("localhost:8000", tmp_path / "b")


def test_every_flag_is_judged_before_the_first_request(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a request was sent")

    with listening(server(tokenizer, right)) as url:
        assert code(url, tmp_path / "run", limit=2) == 0
    monkeypatch.setattr(Endpoint, "_connection", forbidden)
    (tmp_path / "file").write_text("")
    (tmp_path / "short.jsonl").write_text('{"text": "?"}\n')
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data": str(tmp_path / "none.jsonl")}, "--data must be a file, a folder, or one of"),
        ({"data": str(tmp_path / "short.jsonl")}, "no field 'answer', which gsm8k needs"),
        ({"data": "generated"}, "--data: the suite gsm8k has no generator"),
        ({"lengths": (10,)}, "--lengths: gsm8k has no texts of chosen lengths"),
        ({"since": "2026-01-01"}, "--since, --until: the rows of gsm8k have no dates"),
        ({"suite": "livecodebench", "since": "soon"}, "--since must be a date as 2026-01-31, got 'soon'"),
        ({"suite": "livecodebench", "until": "2026-13-01"}, "--until must be a date as 2026-01-31, got '2026-13-01'"),
        ({"suite": "ruler", "data": "", "since": "2026-01-01"}, "--since, --until: the rows of ruler have no dates"),
        ({"suite": "ruler", "data": "", "lengths": (4096, 3)}, "3 tokens are too few"),
        ({"suite": "ruler", "data": "", "compare": tmp_path / "run"}, "--compare .*: its suite is gsm8k, not ruler"),
        ({"suite": "hle", "judge": "127.0.0.1:9"}, "--judge: URL must be http://host:port"),
        ({"suite": "hle", "judge": "http://127.0.0.1:9", "compare": tmp_path / "run"}, "its suite is gsm8k, not hle"),
        ({"compare": tmp_path / "no"}, "has no run of dsv4 eval: settings.json is missing"),
        ({"limit": 2, "compare": tmp_path / "run", "out": tmp_path / "file"}, "--out .*file: .* is a file"),
        ({"out": tmp_path / "file" / "below"}, "--out .*below: .*file is a file"),
        ({"limit": 2, "out": tmp_path / "run", "seed": 1}, "--out .* has a run with seed 0, not 1: give another"),
        ({"limit": 2, "out": tmp_path / "run", "mode": "max"}, '--out .* has a run with mode "high", not "max"'),
        ({"price": "1"}, "--price must be PROMPT,ANSWER"),
        ({"least": 101.0}, "--least must be in"),
    ]
    for flags, message in wrong:
        given: dict[str, Any] = {"out": tmp_path / "new", **flags}
        with pytest.raises(ValueError, match=message):
            start("http://127.0.0.1:9", **given)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="dsv4 eval needs inspect_ai: pip install"):
        start("http://127.0.0.1:9", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_lengths_that_a_tokenizer_may_reach_are_left_to_it() -> None:
    """Texts are counted with an estimate until the model's tokenizer is there, which may find fewer tokens."""
    settings = EvalSettings(suite_named("needle"), limit=1)
    with pytest.raises(ValueError, match="10 tokens are too few for this question, which needs") as refused:
        make_plan(replace(settings, lengths=(10,)))
    narrow = replace(settings, lengths=(int(str(refused.value).split()[-1]) - 1,))
    with pytest.raises(ValueError, match="are too few"):
        make_plan(narrow)
    assert early_plan(narrow) is None
    assert make_plan(narrow, lambda text: len(text) // 5).items


def test_a_judge_is_reached_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.verify.own_server.subprocess.Popen", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(ValueError, match=r"^--judge: http://127\.0\.0\.1:9 cannot be used"):
        start(str(ROOT / "models" / "nano"), tmp_path / "a", suite="hle", judge="http://127.0.0.1:9", max_tokens=16)


@pytest.mark.parametrize("key", ["secret-4711", "schlüssel-ключ-4711"])
def test_a_key_reaches_the_server_and_no_file(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("DSV4_EVAL_KEY", key)
    stub = server(tokenizer, right)
    stub.app = Server(tokenizer, stub.generator, keys=Keys.parse([f"me {key}"])).app
    with listening(stub) as url:
        assert code(url, tmp_path / "a", limit=1) == 0
    for file in (tmp_path / "a").rglob("*"):
        assert file.is_dir() or key.encode() not in file.read_bytes()


@contextmanager
def bare_server(answers: int) -> Iterator[str]:
    """A server that streams so many answers, without usage counts, and then is gone."""
    left = [answers]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200 if self.path == "/v1/models" else 404, b'{"data": [{"id": "bare"}]}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/v1/chat/completions":
                return self._send(404, b"{}")
            left[0] -= 1
            if left[0] < 0:
                listener.server_close()  # further connections are refused; this one ends without a response
                return None
            said = right(body.decode()).partition("</think>")[2]
            delta = {
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": said}, "finish_reason": "stop"}]
            }
            return self._send(200, f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode())

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *told: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def serve() -> None:
        with suppress(OSError, ValueError):  # it is closed while it listens
            listener.serve_forever(0.02)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_address[1]}"
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join(10)


def test_a_server_that_dies_is_told_of_and_what_is_there_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4.evals.retries.WAITS", (0.01, 0.02))
    with bare_server(2) as url:
        assert code(url, tmp_path / "a", concurrency=1) == MISSING
    text, progress = capsys.readouterr()
    assert f"{url}: " in progress
    assert "try 2 of 3, the last one at about" in progress
    assert f"{url}: given up after 3 tries" in progress
    assert f"{url}: given up after 3 tries" in text
    assert f"2 of 6 answers are kept in {tmp_path / 'a'}; the same command asks only for the other ones" in text
    assert "tokens of an answer unknown (the server sends no usage counts)" in text
    assert json.loads((tmp_path / "a" / RESULT).read_text())["tokens"]["answer"] is None


def test_a_full_disk_ends_a_run_at_once(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, kept = RunFolder.add, list[KeptAnswer]()

    def full(folder: RunFolder, answer: KeptAnswer) -> None:
        if kept:
            raise OSError(28, "No space left on device", str(folder.folder / ANSWERS))
        kept.append(answer)
        add(folder, answer)

    monkeypatch.setattr(RunFolder, "add", full)
    stub = server(tokenizer, right)
    with listening(stub) as url, pytest.raises(OSError, match="No space left"):
        code(url, tmp_path / "a", concurrency=1, samples=9)
    assert len(stub.generator.calls) < 6, "no answer is asked for that cannot be kept"
    monkeypatch.setattr(RunFolder, "add", add)
    with listening(stub) as url:
        assert code(url, tmp_path / "a", concurrency=1, samples=9) == 0


def test_a_page_in_place_of_a_stream_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<!doctype html><p>Hello"
    with raw_server(says(page)) as url:
        assert code(url, tmp_path / "a", limit=1) == MISSING
    text, progress = capsys.readouterr()
    assert "status 200: a stream was asked for, and this came (text/html): <!doctype html><p>Hello" in text
    assert "sent again" not in progress


def test_a_dry_run_whose_server_is_gone_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4.evals.retries.WAITS", ())
    with bare_server(0) as url:
        assert code(url, tmp_path / "a", dry_run=True) == MISSING
    assert f"{url}: given up after 1 tries" in capsys.readouterr().out
    with bare_server(9) as url:
        start(url, tmp_path / "b", dry_run=True, price="1,2")
    assert "tokens and cost unknown: the server sends no usage counts" in capsys.readouterr().out


@pytest.mark.parametrize("name", suite_names())
def test_the_stand_in_of_every_suite_runs(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    with listening(server(tokenizer, lambda prompt: "Thought</think>forty-two")) as url:
        assert code(url, tmp_path / "a", suite=name, limit=3, samples=2, max_tokens=32) == 0
    result = json.loads((tmp_path / "a" / RESULT).read_text())
    assert result["answers"] == 6
    assert 0 <= result["score"]["value"] <= 100


def test_settings_are_checked() -> None:
    suite = suite_named("gsm8k")
    with pytest.raises(ValueError, match="--samples must be at least 1"):
        EvalSettings(suite, samples=0)
    with pytest.raises(ValueError, match=r"--concurrency must be in \[1, 4096\]"):
        EvalSettings(suite, concurrency=0)
    with pytest.raises(ValueError, match=r"--temperature must be in \[0, 2\]"):
        EvalSettings(suite, temperature=3.0)
    with pytest.raises(ValueError, match="--price must be PROMPT,ANSWER"):
        TokenPrice.from_text("1")
    for text in ("nan,1", "1,inf", "-1,1"):
        with pytest.raises(ValueError, match="--price must be at least 0"):
            TokenPrice.from_text(text)
    assert TokenPrice.from_text("2,4").of(1e6, 5e5) == 4
    for least in (-1.0, 101.0, math.nan):
        with pytest.raises(ValueError, match=r"--least must be in \[0, 100\]"):
            OutcomeFlags(least=least).check({})


def test_budgets_are_the_published_windows_within_the_context() -> None:
    plan = make_plan(EvalSettings(suite_named("gsm8k"), Mode.NON_THINK, "stand-in"))
    item = plan.items[0]
    room = plan.room(item, None)
    assert 7500 < room < 8192
    assert plan.room(item, 2048) < 2048
    limited = replace(plan, settings=replace(plan.settings, max_tokens=100))
    assert limited.room(item, None) == limited.room(item, 2048) == 100
    high = make_plan(EvalSettings(suite_named("gsm8k"), Mode.MAX, "stand-in"))
    assert high.room(item, None) == room + (384 - 8) * 1024


def test_rows_without_a_field_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "?"}\n')
    with pytest.raises(ValueError, match=r"no field 'answer', which gsm8k needs"):
        make_plan(EvalSettings(suite_named("gsm8k"), place=str(tmp_path / "x.jsonl")))
