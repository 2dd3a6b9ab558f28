"""The same pull from ModelScope, with its real client."""

from pathlib import Path

import pytest

from dsv4.api.folders import model_folder
from dsv4.hub.names import Repository
from dsv4.hub.pull import pull
from dsv4.hub.sources import HubError
from tests.hub.conftest import SOON, TINY, Screen
from tests.hub.small_hub import Fault, SmallHub, small_model

pytest.importorskip("modelscope_hub")
from dsv4.hub.modelscope import ModelScope

FIRST = "model-00001-of-00002.safetensors"
FILE = f"FilePath={FIRST}"


def test_a_pull_is_resumed_checked_and_found_by_its_name(hub: SmallHub, screen: Screen, caches: Path) -> None:
    hub.faults += [Fault(FILE, cut=(2 << 20) + 5), Fault(FILE, flip=True)]
    folder = pull(ModelScope(hub.url), TINY, SOON, screen)
    model = small_model()
    assert {name: (folder / name).read_bytes() for name in ("config.json", FIRST)} == {
        name: model[name] for name in ("config.json", FIRST)
    }
    assert folder == caches / "ms" / "models" / "own--Tiny-V4" / "snapshots" / "master"
    assert [request.range for request in hub.asked(FILE)] == [None, f"bytes={2 << 20}-", None]
    assert model_folder(TINY.name) == folder
    hub.requests.clear()
    pull(ModelScope(hub.url), TINY, SOON, screen)
    assert not hub.asked("FilePath")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (None, "HUB has no repository own/Nothing: check the spelling, and a private one needs MODELSCOPE_API_TOKEN"),
        (Fault("/repo/files", status=401),
         "HUB refuses the token (401): renew MODELSCOPE_API_TOKEN, or unset it for public models"),
        (Fault("/repo/files", status=403),
         "HUB forbids own/Nothing (403): the token (MODELSCOPE_API_TOKEN) lacks the right to read it"),
        (Fault("/repo/files", status=200, body=b"<html>"), "HUB does not answer like a hub (JSONDecodeError): check "
         "MODELSCOPE_ENDPOINT, and whether a proxy or a login page of the network is in between"),
    ],
)  # fmt: skip
def test_refusals_are_sentences(fault: Fault | None, text: str, hub: SmallHub, screen: Screen) -> None:
    if fault is not None:
        fault.times = 99
        hub.faults.append(fault)
    with pytest.raises(HubError) as refused:
        pull(ModelScope(hub.url), Repository("own/Nothing"), SOON, screen)
    assert str(refused.value).replace(hub.url, "HUB") == text
