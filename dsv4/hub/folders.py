"""Where pulled models lie: the folders that `dsv4 pull` has filled, and the caches of the hubs' own programs. No torch.

A model that another program has put into a hub's cache counts as pulled. The variables of these programs are honoured:
HF_HOME, HF_HUB_CACHE and MODELSCOPE_CACHE.
"""

import json
import os
from pathlib import Path

from dsv4.files import write_whole
from dsv4.hub.names import SEPARATOR, Repository

_MODELS = "models" + SEPARATOR
UNFINISHED = ".incomplete"  # ends the name of a file that still grows
INDEX = "model.safetensors.index.json"


def find_pulled(repository: Repository) -> Path | None:
    """The folder of a model that is here with all its files; None if there is none. The last pull decides, then the
    caches of the hubs."""
    candidates = (_recorded(repository), _in_huggingface(repository), *_in_modelscope(repository))
    return next((folder for folder in candidates if folder is not None and is_complete(folder)), None)


def is_begun(repository: Repository) -> bool:
    """Whether a pull into the cache of Hugging Face was stopped in the middle."""
    return any(huggingface_folder(repository).glob(f"blobs/*{UNFINISHED}"))


def is_complete(folder: Path) -> bool:
    """Whether a folder has a config and all weight files: those of its index, or some where there is none."""
    if not (folder / "config.json").is_file():
        return False
    shards = {file.name for file in folder.glob("*.safetensors") if file.is_file()}
    return bool(shards) and shards >= read_index(folder).keys()


def read_index(folder: Path) -> dict[str, list[str]]:
    """The weight files that a folder's index names, and the tensors of each; empty without an index.

    A file that is no index names none: who loads the folder reports it.
    """
    files: dict[str, list[str]] = {}
    try:
        weight_map = json.loads((folder / INDEX).read_bytes())["weight_map"]
        for tensor, name in weight_map.items():
            files.setdefault(name, []).append(tensor)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return files


def title(folder: Path) -> str:
    """The name of the model in a folder: that of its repository in a hub's cache, else that of the folder."""
    path = folder.resolve()
    above = path.parent.parent
    if path.parent.name == "snapshots" and SEPARATOR in above.name:
        return above.name.rpartition(SEPARATOR)[2]
    return path.name


def huggingface_cache() -> Path:
    """The folder of huggingface_hub's cache."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return _expanded(cache)


def huggingface_folder(repository: Repository) -> Path:
    """The folder of a repository in huggingface_hub's cache; its models lie in `snapshots/COMMIT`."""
    return huggingface_cache() / f"{_MODELS}{repository.flat}"


def modelscope_folder(repository: Repository, revision: str) -> Path:
    """The folder of a model in ModelScope's cache."""
    return _modelscope_cache() / "models" / repository.flat / "snapshots" / revision


def remember(repository: Repository, folder: Path, revision: str) -> None:
    """Note where the last pull of a repository has put it, so that its name finds it."""
    file = _record(repository)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"folder": str(folder.absolute()), "revision": revision})
    write_whole(file, lambda out: out.write(text.encode()))


def _record(repository: Repository) -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "dsv4" / "models" / f"{repository.flat}.json"


def _recorded(repository: Repository) -> Path | None:
    try:
        return Path(json.loads(_record(repository).read_bytes())["folder"])
    except (OSError, ValueError, TypeError, KeyError):  # never pulled, or a note that cannot be read: the caches count
        return None


def _in_huggingface(repository: Repository) -> Path | None:
    """The snapshot of the branch `main`, or the only one."""
    folder = huggingface_folder(repository)
    try:
        return folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        found = list(folder.glob("snapshots/*"))
        return found[0] if len(found) == 1 else None


def _in_modelscope(repository: Repository) -> list[Path]:
    """The places where ModelScope's programs have put models over time."""
    owner, _, name = repository.name.partition("/")
    older = Path("models") / owner / name.replace(".", "___")
    cache = _modelscope_cache()
    return [modelscope_folder(repository, "master"), cache / older, cache / "hub" / older]


def _modelscope_cache() -> Path:
    return _expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")


def _expanded(path: str | Path) -> Path:
    return Path(os.path.expandvars(path)).expanduser()
