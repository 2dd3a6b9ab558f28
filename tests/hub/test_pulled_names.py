"""A name finds the folder of a model that is here, whoever put it there, and nothing else."""

import json
from pathlib import Path

import pytest

from dsv4.api.folders import default_model_folder, model_folder
from dsv4.hub import find_pulled, repository, title
from dsv4.hub.folders import remember
from dsv4.hub.names import RELEASED

OWN = "someone/Tiny-V4"


def model_at(folder: Path, shards: int = 2, present: int | None = None) -> Path:
    """A folder whose index names `shards` files, of which `present` are there (default: all)."""
    folder.mkdir(parents=True)
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    (folder / "config.json").write_text("{}")
    weight_map = {f"t{i}": name for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in names[:present]:
        (folder / name).write_bytes(b"x")
    return folder


def snapshot(tmp_path: Path, repo: str = OWN, commit: str = "c0ffee", present: int | None = None) -> Path:
    """A model in huggingface_hub's cache, as its own programs leave it."""
    root = tmp_path / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return model_at(root / "snapshots" / commit, present=present)


@pytest.mark.parametrize("short", RELEASED)
def test_a_short_name_and_its_repository_are_the_same_model(short: str, tmp_path: Path) -> None:
    folder = snapshot(tmp_path, RELEASED[short].name)
    assert model_folder(short) == model_folder(RELEASED[short].name) == folder
    assert title(folder) == RELEASED[short].title


def test_nano_is_the_bundled_model_unless_a_folder_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder("nano") == default_model_folder()
    model_at(tmp_path / "nano")
    assert model_folder("nano") == Path("nano")


@pytest.mark.parametrize("text", ["flash2", "a/b/c", "/a/b", "../b", "a/", "a/..", "-a/b", "a b/c", "a--b/c", "."])
def test_what_is_no_name_stays_a_path(text: str) -> None:
    assert repository(text) is None
    assert model_folder(text) == Path(text)


def test_a_folder_comes_before_a_pulled_model(tmp_path: Path) -> None:
    snapshot(tmp_path)
    here = model_at(tmp_path / "someone" / "Tiny-V4")
    assert model_folder(OWN) == Path(OWN)
    assert title(here) == "Tiny-V4"


def test_the_last_pull_comes_before_the_caches(tmp_path: Path) -> None:
    wanted = repository(OWN)
    assert wanted is not None
    cached, elsewhere = snapshot(tmp_path), model_at(tmp_path / "elsewhere")
    assert find_pulled(wanted) == cached
    remember(wanted, elsewhere, "main")
    assert find_pulled(wanted) == elsewhere
    (elsewhere / "config.json").unlink()  # a folder that is gone or broken is no model
    assert find_pulled(wanted) == cached


@pytest.mark.parametrize(
    "place", ["models/someone--Tiny-V4/snapshots/master", "models/someone/Tiny-V4", "hub/models/someone/Tiny-V4"]
)
def test_models_of_modelscope_are_found(place: str, tmp_path: Path) -> None:
    folder = model_at(tmp_path / "ms" / place)
    assert model_folder(OWN) == folder


@pytest.mark.parametrize(
    ("variable", "below"), [("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")]
)
def test_variables_of_the_hub_move_its_cache(
    variable: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    monkeypatch.setenv(variable, "$DISK/cache")
    root = tmp_path / "disk" / "cache" / below / "models--someone--Tiny-V4"
    folder = model_at(root / "snapshots" / "abc")
    assert model_folder(OWN) == folder


@pytest.mark.parametrize("present", [0, 1])
def test_a_part_of_a_model_does_not_count(present: int, tmp_path: Path) -> None:
    snapshot(tmp_path, present=present)
    with pytest.raises(FileNotFoundError, match="was not pulled"):
        model_folder(OWN)


def test_the_refusal_says_what_to_type_and_how_much_comes() -> None:
    with pytest.raises(FileNotFoundError) as told:
        model_folder("flash")
    assert str(told.value) == (
        "flash: no such folder, and deepseek-ai/DeepSeek-V4-Flash was not pulled: `dsv4 pull flash` fetches it "
        "(148.6 GiB)"
    )
    with pytest.raises(FileNotFoundError) as told:
        model_folder(OWN)
    assert str(told.value) == (
        f"{OWN}: no such folder, and the model of that name was not pulled: `dsv4 pull {OWN}` fetches it"
    )
