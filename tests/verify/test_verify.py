"""`dsv4 verify` finds every planted fault by its name, and nothing wrong with a right server."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.verify import batches
from dsv4.verify.endpoint import Endpoint, UnreachableError
from dsv4.verify.findings import Outcome, Report
from dsv4.verify.page import page
from dsv4.verify.questions import questions
from dsv4.verify.record import record
from dsv4.verify.run import verify
from dsv4.verify.settings import Settings
from tests.conftest import ROOT
from tests.server.conftest import listening
from tests.server.models import block
from tests.verify.broken import Fault, plant
from tests.verify.faults import FAULTS
from tests.verify.pretend import PretendServer


@pytest.fixture(scope="session")
def nano_tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


def right_server(nano_tokenizer: Tokenizer) -> PretendServer:
    return PretendServer(nano_tokenizer, {question.text: [*question.wanted] for question in questions()})


def verified(server: PretendServer, **settings: object) -> Report:
    with listening(server) as url:  # type: ignore[arg-type]
        return verify(Endpoint(url), Settings(**settings))  # type: ignore[arg-type]


def names(report: Report) -> list[str]:
    return [f"{found.check}.{found.code}" for found in report.faults]


@pytest.fixture
def server(nano_tokenizer: Tokenizer) -> PretendServer:
    return right_server(nano_tokenizer)


@pytest.fixture(scope="session")
def recorded(nano_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fixtures of a right server."""
    file = tmp_path_factory.mktemp("fixtures") / "right.jsonl"
    with listening(right_server(nano_tokenizer)) as url:  # type: ignore[arg-type]
        assert record(Endpoint(url, "pretend"), file, lambda line: None) == 19
    return file


def test_a_right_server_passes(server: PretendServer, recorded: Path) -> None:
    report = verified(server, fixtures=recorded)
    assert names(report) == []
    assert report.exit_code == 0
    assert {result.outcome for result in report.results} == {Outcome.PASSED}
    measures = {f"{m.check}.{m.name}": m.value for result in report.results for m in result.measures}
    assert measures["lengths.residues-4"] == 4
    assert measures["lengths.residues-128"] == 128
    assert measures["batches.same-in-batch"] == 1
    assert measures["rendering.prompts-equal"] == 1
    assert measures["calls.trigger-f1"] == measures["calls.exact"] == measures["calls.schema-valid"] == 1
    assert measures["fixtures.top-1"] == measures["fixtures.top-n-recall"] == measures["fixtures.pair-rate"] == 1
    assert abs(measures["fixtures.nll-excess"]) < 1e-5


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_planted_faults_are_found(
    server: PretendServer, recorded: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(count: int) -> ThreadPoolExecutor:
        server.generator.together = count
        return ThreadPoolExecutor(count)

    # a batch is one for the server too, whatever else the machine does
    monkeypatch.setattr(batches, "ThreadPoolExecutor", threads)
    plant(server, fault)
    check = fault.found.split(".")[0]
    report = verified(server, only=(check,), fixtures=recorded)
    assert fault.found in names(report)
    assert report.exit_code == 1
    found = next(one for one in report.faults if f"{one.check}.{one.code}" == fault.found)
    assert found.reproduce.startswith(("curl ", "dsv4 verify "))
    assert f"{check}.{found.code}" in page(report)


CLOSING = "</｜DSML｜parameter>"
MISTAKES = {
    "a tag that closes another": lambda text: text.replace(CLOSING, "</｜DSML｜invoke>", 1),
    "markup in an argument": lambda text: text.replace(CLOSING, f"<｜DSML｜invoke>{CLOSING}"),
    "a tool that is not there": lambda text: text.replace('invoke name="', 'invoke name="no_'),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_the_model_are_no_faults_of_the_server(server: PretendServer, mistake: str) -> None:
    server.model.block = lambda *calls: MISTAKES[mistake](block(*calls))
    report = verified(server, only=("calls",))
    assert names(report) == []
    assert report.exit_code == 0
    assert report.mistakes
    assert all(found.code.endswith("-by-model") for found in report.mistakes)
    assert "is not to blame" in page(report)
    assert report.to_dict()["mistakes"] == len(report.mistakes)


@pytest.mark.parametrize("name", ["names of no tool", "arguments cut off", "blocks of calls as text"])
def test_faults_are_found_beside_mistakes_of_the_model(server: PretendServer, name: str) -> None:
    """A model that writes the calls of long questions wrongly."""
    broken = MISTAKES["a tag that closes another"]
    server.model.block = lambda *calls: broken(block(*calls)) if "guest" in str(calls) else block(*calls)
    fault = next(one for one in FAULTS if one.name == name)
    plant(server, fault)
    report = verified(server, only=("calls",))
    assert fault.found in names(report)


@pytest.mark.parametrize(
    ("lack", "reason"),
    [
        ("ids", "the endpoint has no text completions that take and tell token ids"),
        ("a completion of this length", "another number of tokens"),
    ],
)
def test_where_nobody_knows_what_the_model_wrote(server: PretendServer, lack: str, reason: str) -> None:
    """A wrong call is a fault of the server then, and the report says why it could not be told."""
    server.model.block = lambda *calls: MISTAKES["markup in an argument"](block(*calls))
    plant(server, Fault("no text", "", whole=without_ids if lack == "ids" else longer_completion))
    report = verified(server, only=("calls",))
    assert "calls.markup-leak" in names(report)
    [told] = report.results[0].skipped
    assert told.startswith("whether the model or the server is to blame for a wrong call, which counts as the server's")
    assert reason in told


def longer_completion(value: dict[str, Any]) -> dict[str, Any]:
    """A text completion with more tokens than it has."""
    if value.get("object") == "text_completion":
        value["usage"]["completion_tokens"] += 1
    return value


def without_ids(value: dict[str, Any]) -> dict[str, Any]:
    """A text completion that tells no token ids."""
    for choice in value.get("choices", ()):
        choice.pop("token_ids", None)
    return value


def test_there_are_twelve_and_more() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 12


def test_an_endpoint_that_is_not_there() -> None:
    with pytest.raises(UnreachableError, match="cannot be used"):
        verify(Endpoint("http://127.0.0.1:9"), Settings())
