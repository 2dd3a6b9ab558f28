"""A pull with the real client against a hub on loopback: what arrives, and what happens when something fails."""

import errno
import json
import resource
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from dsv4.api.folders import model_folder
from dsv4.hub import stores
from dsv4.hub.download import PullWatch
from dsv4.hub.names import Repository
from dsv4.hub.pull import find, pull
from dsv4.hub.sources import Hub, HubError, Listing, RemoteFile
from dsv4.hub.stores import PlainFolder
from tests.hub.conftest import SOON, TINY, Screen
from tests.hub.small_hub import COMMIT, Fault, SmallHub, small_model, weights

pytest.importorskip("huggingface_hub")
from dsv4.hub.huggingface import HuggingFace

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NEEDED = [
    "README.md", "config.json", "encoding/encoding_dsv4.py", "generation_config.json", FIRST, SECOND,
    "model.safetensors.index.json",
]  # fmt: skip


def fetched(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".dsv4-pull"))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def needed(model: dict[str, bytes]) -> dict[str, bytes]:
    return {name: model[name] for name in NEEDED}


def test_a_pull_fills_the_cache_of_the_hubs_own_client(hub: SmallHub, screen: Screen, caches: Path) -> None:
    from huggingface_hub import snapshot_download

    folder = pull(HuggingFace(hub.url), TINY, SOON, screen)
    model = small_model()
    assert fetched(folder) == needed(model)
    assert model_folder(TINY.name) == folder
    cache = caches / "hf" / "hub"
    found = snapshot_download(TINY.name, cache_dir=cache, local_files_only=True, allow_patterns=NEEDED)
    assert Path(found) == folder
    assert screen.count == screen.total == len(model[FIRST]) + len(model[SECOND])


def test_what_is_here_is_not_fetched_again(hub: SmallHub, screen: Screen) -> None:
    first = pull(HuggingFace(hub.url), TINY, SOON, screen)
    hub.requests.clear()
    assert pull(HuggingFace(hub.url), TINY, SOON, screen) == first
    assert not hub.asked("/resolve/")
    assert screen.here == screen.total


def test_files_that_the_hubs_own_client_has_fetched_count(hub: SmallHub, screen: Screen, caches: Path) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(TINY.name, SECOND, endpoint=hub.url, cache_dir=caches / "hf" / "hub")
    hub.requests.clear()
    pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert hub.asked(f"/resolve/{COMMIT}/{FIRST}")
    assert not hub.asked(SECOND)


def test_a_lost_connection_goes_on_where_it_stopped(hub: SmallHub, screen: Screen) -> None:
    hub.faults += [Fault(f"//{FIRST}", cut=(2 << 20) + 5), Fault(f"//{FIRST}", cut=100_000)]
    folder = pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert fetched(folder) == needed(small_model())
    ranges = [request.range for request in hub.asked(f"/cdn/{TINY.name}//{FIRST}")]
    assert ranges == [None, f"bytes={(2 << 20) + 5}-", f"bytes={(2 << 20) + 100_005}-"]
    assert sum("next try in" in note for note in screen.notes) == 2


def test_a_second_process_goes_on_where_the_first_was_ended(hub: SmallHub, screen: Screen) -> None:
    impatient = replace(SOON, patience=replace(SOON.patience, waits=()))
    hub.faults.append(Fault(f"//{FIRST}", cut=(2 << 20) + 5))
    with pytest.raises(HubError, match="broke the connection"):
        pull(HuggingFace(hub.url), TINY, impatient, screen)
    with pytest.raises(FileNotFoundError, match=f"was pulled only in part: `dsv4 pull {TINY.name}` goes on"):
        model_folder(TINY.name)
    hub.requests.clear()
    folder = pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert fetched(folder) == needed(small_model())
    assert [request.range for request in hub.asked(f"/cdn/{TINY.name}//{FIRST}")] == [f"bytes={(2 << 20) + 5}-"]
    assert screen.count == screen.total


def test_patience_ends_when_nothing_arrives_any_more(hub: SmallHub, screen: Screen) -> None:
    hub.faults.append(Fault(f"//{FIRST}", cut=0, times=99))
    with pytest.raises(HubError, match=r"broke the connection .*HTTPS_PROXY"):
        pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert len(hub.asked(f"/cdn/{TINY.name}//{FIRST}")) == 1 + len(SOON.patience.waits)


def test_a_hub_without_ranges_sends_the_file_again(hub: SmallHub, screen: Screen) -> None:
    hub.faults += [Fault(f"//{FIRST}", cut=1 << 20), Fault(f"//{FIRST}", whole=True)]
    folder = pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert fetched(folder) == needed(small_model())
    assert screen.count == screen.total


@pytest.mark.parametrize("name", [f"//{FIRST}", "/config.json"])
def test_wrong_bytes_are_fetched_again_once(name: str, hub: SmallHub, screen: Screen) -> None:
    hub.faults.append(Fault(name, flip=True))
    folder = pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert fetched(folder) == needed(small_model())
    assert sum("fetched again" in note for note in screen.notes) == 1
    assert screen.count == screen.total


def test_wrong_bytes_twice_are_refused_and_not_kept(hub: SmallHub, screen: Screen, caches: Path) -> None:
    hub.faults.append(Fault(f"//{FIRST}", flip=True, times=2))
    with pytest.raises(HubError, match=rf"^{FIRST}: what arrived has not the hash that the hub gives, twice"):
        pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert not [file for file in caches.rglob("*.incomplete") if file.stat().st_size > 3 << 20]
    with pytest.raises(FileNotFoundError):
        model_folder(TINY.name)


def test_a_disk_without_room_is_told_before_the_weights_come(
    hub: SmallHub, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = namedtuple("room", "total used free")(1 << 40, 0, 5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(HubError, match=r"6\.0 MiB are to come and 5\.0 MiB are free: free 1\.0 MiB, or name a folder"):
        pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert not hub.asked("/cdn/")


def test_a_disk_that_fills_keeps_what_has_arrived(hub: SmallHub, screen: Screen) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))
    try:
        with pytest.raises(HubError, match=r"the disk is full, and files of 6\.0 MiB are not whole: free room and run"):
            pull(HuggingFace(hub.url), TINY, SOON, screen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    hub.requests.clear()
    assert fetched(pull(HuggingFace(hub.url), TINY, SOON, screen)) == needed(small_model())
    assert f"bytes={2 << 20}-" in {request.range for request in hub.asked("/cdn/")}


def test_two_pulls_at_once_fetch_everything_once(screen: Screen) -> None:
    second = Screen()
    folders: list[Path] = []
    with SmallHub({TINY.name: small_model()}, seconds_per_mib=20) as hub:
        runs = [
            threading.Thread(target=lambda s=s: folders.append(pull(HuggingFace(hub.url), TINY, SOON, s)))
            for s in (screen, second)
        ]
        runs[0].start()
        until(lambda: bool(hub.asked("/cdn/")))
        runs[1].start()
        until(lambda: any("another process fetches" in note for note in second.notes))
        hub.seconds_per_mib = 0
        for run in runs:
            run.join()
        assert hub.sent == sum(len(content) for content in needed(small_model()).values())
    assert len(folders) == 2
    assert not any("waiting for it" in note for note in screen.notes)


def test_a_folder_without_locks_is_told(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("dsv4.files.fcntl.flock", none)
    with SmallHub({TINY.name: small_model()}) as hub:
        assert fetched(pull(HuggingFace(hub.url), TINY, SOON, screen)) == needed(small_model())
    assert any("has no locks: do not run two pulls into it at once" in note for note in screen.notes)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.01)


def test_a_stop_keeps_what_has_arrived(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with SmallHub({TINY.name: small_model()}) as hub:
        with monkeypatch.context() as patched:
            patched.setattr(screen, "begin", interrupt)  # the main thread, after the small files
            with pytest.raises(KeyboardInterrupt):
                pull(HuggingFace(hub.url), TINY, SOON, screen)
        hub.requests.clear()
        pull(HuggingFace(hub.url), TINY, SOON, screen)
        assert not hub.asked("config.json")


def test_a_folder_of_the_user_gets_the_files_themselves(hub: SmallHub, screen: Screen, tmp_path: Path) -> None:
    wishes = replace(SOON, folder=tmp_path / "disk" / "tiny")
    folder = pull(HuggingFace(hub.url), TINY, wishes, screen)
    assert folder == wishes.folder
    assert fetched(folder) == needed(small_model())
    assert not any(file.is_symlink() for file in folder.rglob("*"))
    assert model_folder(TINY.name) == folder
    hub.requests.clear()
    pull(HuggingFace(hub.url), TINY, wishes, screen)
    assert not hub.asked("/resolve/")
    (folder / SECOND).write_bytes(b"damaged")
    pull(HuggingFace(hub.url), TINY, wishes, screen)
    assert fetched(folder) == needed(small_model())


def test_a_newer_state_replaces_what_an_older_pull_has_put_there(hub: SmallHub, screen: Screen, tmp_path: Path) -> None:
    wishes = replace(SOON, folder=tmp_path / "tiny")
    pull(HuggingFace(hub.url), TINY, wishes, screen)
    hub.repositories[TINY.name]["generation_config.json"] = b'{"temperature": 1.0}'
    hub.requests.clear()
    folder = pull(HuggingFace(hub.url), TINY, wishes, screen)
    assert (folder / "generation_config.json").read_bytes() == b'{"temperature": 1.0}'
    assert len(hub.asked("/resolve/")) == 1


def test_files_of_another_origin_are_not_replaced(hub: SmallHub, screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"mine/config\.json is there with other content: name another folder"):
        pull(HuggingFace(hub.url), TINY, replace(SOON, folder=tmp_path / "mine"), screen)
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_patterns_add_files_and_leave_files_out(hub: SmallHub, screen: Screen) -> None:
    wishes = replace(SOON, include=("inference/*", "*.png"), exclude=("README.md",))
    names = {
        file.name for file in find(HuggingFace(hub.url), TINY, wishes, PullWatch(screen.arrived, screen.note)).files
    }
    assert names == {*NEEDED, "inference/config.json", "figure.png"} - {"README.md"}


def test_weight_files_that_the_index_does_not_name_stay_there(hub: SmallHub, screen: Screen) -> None:
    hub.repositories[TINY.name]["consolidated.safetensors"] = weights({"all": 100})
    assert fetched(pull(HuggingFace(hub.url), TINY, SOON, screen)) == needed(small_model())


def test_a_renamed_repository_is_found_under_both_names(hub: SmallHub, screen: Screen) -> None:
    hub.renamed["own/Old-Name"] = TINY.name
    folder = pull(HuggingFace(hub.url), Repository("own/Old-Name"), SOON, screen)
    assert screen.notes[1] == f"own/Old-Name is called {TINY.name} now"
    assert model_folder("own/Old-Name") == model_folder(TINY.name) == folder


def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    hub: SmallHub, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(HuggingFace(hub.url), TINY, SOON, screen)
    assert {request.token for request in hub.asked("/resolve/")} == {"Bearer hf_secret"}
    assert {request.token for request in hub.asked("/cdn/")} == {None}


@pytest.mark.parametrize(
    ("commit", "name", "digest"),
    [
        ("../../evil", "config.json", "abc"),
        (COMMIT, "config.json", "../../evil"),
        (COMMIT, "inference/../../evil", "abc"),
        (COMMIT, "/etc/evil", "abc"),
    ],
)
def test_a_hub_cannot_name_places_outside_the_folder(commit: str, name: str, digest: str, screen: Screen) -> None:
    listing = Listing(TINY.name, commit, (RemoteFile(name, 1, "sha256", digest),))
    hostile = cast(Hub, SimpleNamespace(default_revision="main", url="hub", listing=lambda *asked: listing))
    with pytest.raises(HubError, match="which is no name of a file"):
        pull(hostile, TINY, replace(SOON, include=(name,)), screen)


def _without(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.__delitem__(name)


def _config(**changes: object) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files["config.json"] = json.dumps({**json.loads(files["config.json"]), **changes}).encode()

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without(FIRST), rf"lacks 1 weight files that its index names \(first: {FIRST}\): its upload is not complete"),
        (_without("config.json"), "own/Tiny-V4 holds no model in safetensors files: it has pickle files"),
        (
            _config(model_type="llama", architectures=["LlamaForCausalLM"]),
            r"own/Tiny-V4 cannot be loaded: config\.json",
        ),
        (lambda files: files.update({FIRST: weights({"x": 8})}), f"^{FIRST}: tensor 'a' is in the index but not in"),
        (lambda files: files.update({FIRST: files[FIRST][:-4]}), f"^{FIRST}: truncated: tensor 'a' ends at byte"),
        (lambda files: files.update({FIRST: b"<html>login</html>"}), f"^{FIRST}: .*the repository itself has a broken"),
    ],
)
def test_a_broken_repository_is_explained(
    change: Callable[[dict[str, bytes]], None], told: str, hub: SmallHub, screen: Screen
) -> None:
    change(hub.repositories[TINY.name])
    with pytest.raises(HubError, match=told):
        pull(HuggingFace(hub.url), TINY, SOON, screen)
    with pytest.raises(FileNotFoundError):
        model_folder(TINY.name)


def test_a_model_that_cannot_be_loaded_comes_when_it_is_wanted_anyway(hub: SmallHub, screen: Screen) -> None:
    _config(model_type="llama", architectures=["LlamaForCausalLM"])(hub.repositories[TINY.name])
    folder = pull(HuggingFace(hub.url), TINY, replace(SOON, anyway=True), screen)
    assert fetched(folder) == needed(hub.repositories[TINY.name])


def test_a_pull_that_waited_for_another_knows_what_that_one_has_written(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store was made before the other one's notes."""
    first, second = PlainFolder(tmp_path), PlainFolder(tmp_path)
    watch = PullWatch(screen.arrived, screen.note)
    old, new = (RemoteFile("config.json", 2, "sha256", digit * 64) for digit in "ab")
    first.partial(old).write_bytes(b"{}")
    first.keep(old)
    monkeypatch.setattr(stores, "has_hash", lambda *asked: False)
    assert second.has(old, watch)  # by the note, without reading it
    assert not second.has(new, watch)  # another version of a pulled file: fetched, not refused
