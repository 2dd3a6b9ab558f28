"""Every refusal of a hub is one sentence that says what to do."""

import socket
import sys
from dataclasses import replace

import pytest

from dsv4.hub.huggingface import HuggingFace
from dsv4.hub.names import Repository
from dsv4.hub.pull import pull
from dsv4.hub.sources import HubError
from tests.hub.conftest import SOON, TINY, Screen
from tests.hub.small_hub import Fault, SmallHub

pytest.importorskip("huggingface_hub")
API = f"/api/models/{TINY.name}"


def told(hub: SmallHub, screen: Screen, repo: str = TINY.name, revision: str | None = None) -> str:
    """The refusal, without the address of the hub."""
    with pytest.raises(HubError) as refused:
        pull(HuggingFace(hub.url), Repository(repo), replace(SOON, revision=revision), screen)
    text = str(refused.value).replace(hub.url, "HUB").replace(hub.url.removeprefix("http://"), "HUB")
    assert "\n" not in text
    return text


def test_missing_repository_and_revision(hub: SmallHub, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(hub, screen, "own/Nothing") == (
        "HUB has no repository own/Nothing: check the spelling, and a private one needs HF_TOKEN"
    )
    assert told(hub, screen, revision="v9") == (
        "own/Tiny-V4 has no revision v9: --revision takes a branch, a tag or a commit"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert told(hub, screen, "own/Nothing") == (
        "HUB has no repository own/Nothing: check the spelling, or the token may not read it"
    )


def test_gated_repositories(hub: SmallHub, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.append(Fault("/resolve/", status=401, headers={"X-Error-Code": "GatedRepo"}, times=99))
    assert told(hub, screen) == (
        "own/Tiny-V4 is gated: accept its terms on HUB/own/Tiny-V4, and set HF_TOKEN to a token of that account"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.faults.insert(0, Fault("/resolve/", status=403, headers={"X-Error-Code": "GatedRepo"}, times=99))
    assert told(hub, screen) == (
        "own/Tiny-V4 is gated: accept its terms on HUB/own/Tiny-V4, and wait until its owner lets this account in"
    )


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"},
         "HUB refuses the token (401): renew HF_TOKEN, or unset it for public models"),
        (403, {}, "HUB forbids own/Tiny-V4 (403): the token (HF_TOKEN) lacks the right to read it"),
        (403, {"X-Error-Message": "Access to this resource is disabled."},
         "own/Tiny-V4 was disabled by the hub: HUB/own/Tiny-V4 may say why"),
        (429, {}, "HUB gets too many requests from here (429): try again in some minutes; a token (HF_TOKEN) is "
         "allowed more"),
        (500, {}, "HUB fails (500): try again later"),
        (503, {}, "HUB fails (503): try again later"),
    ],
)  # fmt: skip
def test_statuses(status: int, headers: dict[str, str], text: str, hub: SmallHub, screen: Screen) -> None:
    hub.faults.append(Fault(API, status=status, headers=headers, times=99))
    assert told(hub, screen) == text
    assert len(hub.asked(API)) == (1 if status < 429 else 3)  # what may pass is tried again, a little


def test_what_passes_is_waited_for(hub: SmallHub, screen: Screen) -> None:
    hub.faults += [
        Fault(API, status=502),
        Fault("/resolve/", status=429, headers={"Retry-After": "1"}),
        Fault("/cdn/", status=503),
    ]
    pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert ["next try in" in note for note in screen.notes].count(True) == 3
    assert any("(429)" in note and note.endswith("next try in 1 s") for note in screen.notes)


def test_what_is_no_hub(hub: SmallHub, screen: Screen) -> None:
    page = Fault(API, status=200, body=b"<html>Sign in to the wifi</html>", times=99)
    hub.faults.append(page)
    text = "HUB does not answer like a hub (JSONDecodeError): check HF_ENDPOINT, and whether a proxy or a login page "
    assert told(hub, screen) == f"{text}of the network is in between"
    page.body = b'{"hello": "world"}'
    assert "does not answer like a hub" in told(hub, screen)


def test_no_connection(screen: Screen) -> None:
    with socket.socket() as held:  # bound and not listening: the port refuses
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(HubError) as refused:
            pull(HuggingFace(url), TINY, SOON, screen)
    text = str(refused.value)
    assert text.startswith(f"{url.removeprefix('http://')} cannot be reached (")
    assert text.endswith("): check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT")


def test_silence(hub: SmallHub, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    import huggingface_hub

    def silent(*args: object, **kwargs: object) -> None:
        raise httpx2.ReadTimeout("timed out")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", silent)
    assert "does not answer within 20 s" in told(hub, screen)


def test_offline(hub: SmallHub, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert told(hub, screen) == "own/Tiny-V4: HF_HUB_OFFLINE is set, so nothing is fetched: unset it to pull"
    assert not hub.requests


def test_without_the_client(hub: SmallHub, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert told(hub, screen) == (
        f"huggingface_hub is not installed: `{sys.executable} -m pip install 'huggingface_hub>=2,<3'` installs it, and "
        "so does the extra `hub` of dsv4"
    )
