"""`dsv4 pull`: from the list of a repository to a folder that was checked. The command line is `dsv4/cli/pull.py`."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from dsv4.checkpoint.inventory import file_problems
from dsv4.config import ModelConfig
from dsv4.files import is_full, size_text
from dsv4.hub.download import Download, Patience, PullWatch, insist
from dsv4.hub.folders import INDEX, modelscope_folder, read_index, remember
from dsv4.hub.names import Repository
from dsv4.hub.sources import Hub, HubError, Listing, RemoteFile
from dsv4.hub.stores import HubCache, PlainFolder, Store, alone

WEIGHTS = ".safetensors"
PATIENCE = Patience()
# what a load reads, and what tells a person what it is; a pattern without a slash means the top folder alone
NEEDED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    INDEX,
    f"*{WEIGHTS}",
    "encoding/*.py",
    "README.md",
    "LICENSE*",
)


@dataclass(frozen=True, slots=True)
class PullWishes:
    """What of a repository is fetched, and how. folder: None is the hub's cache; include adds patterns to what a load
    needs, exclude takes files away from it; workers: files at the same time; anyway: also what cannot be loaded."""

    folder: Path | None = None
    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    workers: int = 8
    anyway: bool = False
    patience: Patience = PATIENCE


class PullScreen(Protocol):
    """What a pull tells while it runs. Threads may call `arrived` and `note`."""

    def begin(self, total: int, here: int) -> None:
        """total: bytes of the model's files; here: those that were there before."""
        ...

    def arrived(self, count: int) -> None: ...

    def note(self, text: str) -> None: ...


def find(source: Hub, repository: Repository, wishes: PullWishes, watch: PullWatch) -> Listing:
    """The files of a repository that a pull wants. Raises HubError."""
    revision = wishes.revision or source.default_revision
    watch.note(f"{repository.name} ({revision}) on {source.url}")
    soon = Patience(wishes.patience.waits[:2], wishes.patience.most)  # nothing is lost yet: the user may look
    listing = insist(lambda: source.listing(repository.name, revision), soon, watch)
    if listing.repo != repository.name:
        watch.note(f"{repository.name} is called {listing.repo} now")
    files = tuple(file for file in listing.files if _is_wanted(file.name, wishes))
    _check_paths(listing, files)
    names = {file.name for file in files}
    if "config.json" not in names or not any(is_weights(name) for name in names):
        raise HubError(f"{listing.repo} holds no model in safetensors files{_what_else(listing)}")
    return Listing(listing.repo, listing.commit, files)


def pull(source: Hub, repository: Repository, wishes: PullWishes, screen: PullScreen) -> Path:
    """Fetch a model, and return its folder. What is here is not fetched again; what an earlier pull has begun goes on.

    Every file is compared with the hub's hash and size, and every weight file's header with the index, as it arrives.
    Raises HubError, ValueError or OSError with a sentence. Ctrl-C (KeyboardInterrupt) keeps what has arrived.
    """
    watch = PullWatch(screen.arrived, screen.note)
    listing = find(source, repository, wishes, watch)
    revision = wishes.revision or source.default_revision
    store = _store(source, listing, wishes, revision)
    with alone(store, watch):
        job = _Job(source, listing, store, wishes, watch)
        job.fetch(job.missing(file for file in listing.files if not is_weights(file.name)), {})
        index = read_index(store.folder)
        weights = job.weights(index)
        if not wishes.anyway:
            _check_config(store.folder, listing.repo)
        left = job.missing(weights)
        total = sum(file.size for file in weights)
        _check_room(store, left)
        screen.begin(total, total - sum(file.size for file in left))
        try:
            job.fetch(left, index)
        except OSError as error:
            if not is_full(error):
                raise
            raise _full(store, left) from None
    for name in {repository.name, listing.repo}:
        remember(Repository(name), store.folder, revision)
    return store.folder


@dataclass(frozen=True, slots=True)
class _Job:
    """A pull with its place and its source."""

    source: Hub
    listing: Listing
    store: Store
    wishes: PullWishes
    watch: PullWatch

    def missing(self, files: Iterable[RemoteFile]) -> list[RemoteFile]:
        return [file for file in files if not self.store.has(file, self.watch)]

    def weights(self, index: Mapping[str, list[str]]) -> list[RemoteFile]:
        """The weight files that the index names, and those that were asked for; without an index all.

        Raises HubError for an index that names files which the repository lacks.
        """
        there = {file.name: file for file in self.listing.files if is_weights(file.name)}
        lost = sorted(name for name in index.keys() - there.keys() if not _matches(name, self.wishes.exclude))
        if lost:
            raise HubError(
                f"{self.listing.repo} lacks {len(lost)} weight files that its index names (first: {lost[0]}): its "
                "upload is not complete; an older --revision may be"
            )
        if not index:
            return list(there.values())
        return [file for name, file in there.items() if name in index or _matches(name, self.wishes.include)]

    def fetch(self, files: Sequence[RemoteFile], index: Mapping[str, list[str]]) -> None:
        """Fetch files, several at a time. index: the tensors of each weight file."""
        with ThreadPoolExecutor(self.wishes.workers, "pull") as pool:
            try:
                running = [pool.submit(self._fetch, file, index) for file in files]
                done = wait(running, return_when=FIRST_EXCEPTION).done
                failed = [error for one in done if (error := one.exception()) is not None]
                if failed:
                    raise failed[0]
            except BaseException:  # Ctrl-C too: what runs ends at its next chunk, what waits does not begin
                self.watch.stop()
                self.watch.note("stopping")
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch(self, file: RemoteFile, index: Mapping[str, list[str]]) -> None:
        partial = self.store.partial(file)
        Download(self.source, self.listing, file, partial, self.watch, self.wishes.patience).run()
        if is_weights(file.name):
            problems = file_problems(partial, index.get(file.name) if index else None)
            if problems:
                what = problems[0].replace(str(partial), file.name)
                raise HubError(
                    f"{what}: the repository itself has a broken file; another --revision may have a good one"
                )
        self.store.keep(file)


def _check_paths(listing: Listing, files: Iterable[RemoteFile]) -> None:
    """Raise HubError for what a hub must not decide: places outside the folder, through names that become paths."""
    parts = listing.commit.split("/")
    parts += [part for file in files for part in (*file.name.split("/"), file.digest or "none")]
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\\" in part or "\0" in part:
            raise HubError(f"{listing.repo}: the hub lists {part!r}, which is no name of a file: is it to be trusted?")


def is_weights(name: str) -> bool:
    return name.endswith(WEIGHTS)


def _is_wanted(name: str, wishes: PullWishes) -> bool:
    return _matches(name, (*NEEDED, *wishes.include)) and not _matches(name, wishes.exclude)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches; one without a slash means files of the top folder."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _what_else(listing: Listing) -> str:
    """What a repository without a model in safetensors files has instead, as far as that helps."""
    endings = {Path(file.name).suffix for file in listing.files}
    if ".gguf" in endings:
        return ": it has GGUF files; fetch one by hand, and `dsv4 convert FILE.gguf FOLDER` makes a folder of it"
    if endings & {".bin", ".pt", ".pth"}:
        return ": it has pickle files, which can run code and are not read"
    if any(file.name == "adapter_config.json" for file in listing.files):
        return ": it is an adapter; fetch its files by hand, and use them with --adapter"
    return ""


def _store(source: Hub, listing: Listing, wishes: PullWishes, revision: str) -> Store:
    if wishes.folder is not None:
        return PlainFolder(wishes.folder)
    if source.name == "ModelScope":
        return PlainFolder(modelscope_folder(Repository(listing.repo), revision))
    return HubCache(listing, revision)


def _check_config(folder: Path, repo: str) -> None:
    """Raise HubError for a model that cannot be loaded, before its weights are fetched."""
    try:
        ModelConfig.from_file(folder)
    except ValueError as error:
        why = str(error).replace(f"{folder}/", "")
        raise HubError(f"{repo} cannot be loaded: {why}; --force fetches it anyway") from None


def _check_room(store: Store, left: Sequence[RemoteFile]) -> None:
    """Raise HubError where the disk has no room for what is missing."""
    needed = 0
    for file in left:
        partial = store.partial(file)
        needed += file.size - min(file.size, partial.stat().st_size if partial.is_file() else 0)
    free = shutil.disk_usage(store.folder).free
    if needed > free:
        raise HubError(
            f"{store.folder}: {size_text(needed)} are to come and {size_text(free)} are free: "
            f"free {size_text(needed - free)}, or name a folder on another disk (`dsv4 pull NAME DIR`, or HF_HOME)"
        )


def _full(store: Store, left: Sequence[RemoteFile]) -> HubError:
    missing = sum(file.size for file in left if not (store.folder / file.name).exists())
    return HubError(
        f"{store.folder}: the disk is full, and files of {size_text(missing)} are not whole: free room and run the "
        "command again; what has arrived is kept"
    )
