"""Hugging Face, and every hub that answers like it: the client is huggingface_hub, with its variables.

HF_ENDPOINT is another hub or a mirror, HF_TOKEN a token, HF_HUB_OFFLINE forbids the network. Files come over plain
HTTP with ranges: huggingface_hub itself starts a file again whose process has ended, and these files have gigabytes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from dsv4.hub.sources import (
    CHUNK,
    Address,
    Body,
    HubError,
    Listing,
    OfflineError,
    RemoteFile,
    missing_package,
    one_line,
    seconds,
)

SECONDS = 20.0  # of silence, then a connection counts as lost
_RANGE = re.compile(r"bytes (\d+)-")


class HuggingFace:
    """A hub that huggingface_hub can talk to. endpoint: its address; None is that of HF_ENDPOINT."""

    name = "Hugging Face"
    default_revision = "main"

    def __init__(self, endpoint: str | None = None) -> None:
        self._client = _client()
        self._address = Address(endpoint or self._client.constants.ENDPOINT, "HF_ENDPOINT", "HF_TOKEN")

    @property
    def url(self) -> str:
        return self._address.url

    def listing(self, repo: str, revision: str) -> Listing:
        api = self._client.HfApi(endpoint=self._address.url, library_name="dsv4")
        with self._explained(repo, revision):
            try:
                info = api.model_info(repo, revision=revision)
                tree = list(api.list_repo_tree(info.id, recursive=True, revision=info.sha))
            except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or not that of a hub
                raise self._address.no_hub(type(error).__name__) from None
        if not info.sha:
            raise self._address.no_hub("no commit")
        files = (_file(entry) for entry in tree if isinstance(entry, self._client.hf_api.RepoFile))
        return Listing(info.id, info.sha, tuple(files))

    @contextmanager
    def open(self, listing: Listing, file: RemoteFile, offset: int) -> Iterator[Body]:
        url = self._client.hf_hub_url(listing.repo, file.name, revision=listing.commit, endpoint=self._address.url)
        headers = self._client.utils.build_hf_headers(library_name="dsv4")
        headers["Accept-Encoding"] = "identity"  # the bytes of the file, not those of a packed one
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with self._explained(listing.repo, listing.commit):
            session = self._client.utils.get_session()
            with session.stream("GET", url, headers=headers, timeout=SECONDS) as response:
                self._client.utils.hf_raise_for_status(response)
                start = _RANGE.match(response.headers.get("Content-Range", ""))
                # pieces as the network brings them cost half the time of pieces that are put together
                packed = response.headers.get("Content-Encoding", "identity") != "identity"
                chunks = response.iter_bytes(CHUNK) if packed else response.iter_raw()
                yield Body(int(start[1]) if start else 0, chunks)

    @contextmanager
    def _explained(self, repo: str, revision: str) -> Iterator[None]:
        """While entered, errors of the client become sentences."""
        errors = self._client.errors
        try:
            yield
        except errors.OfflineModeIsEnabled:
            raise OfflineError(f"{repo}: HF_HUB_OFFLINE is set, so nothing is fetched: unset it to pull") from None
        except errors.HfHubHTTPError as error:
            raise self._refusal(error, repo, revision) from None
        except errors.HTTPError as error:  # of the connection
            raise self._unreachable(error) from None

    def _refusal(self, error: Any, repo: str, revision: str) -> HubError:
        errors, status = self._client.errors, error.response.status_code
        token = self._client.get_token() is not None
        if isinstance(error, errors.GatedRepoError):
            then = "wait until its owner lets this account in" if token else "set HF_TOKEN to a token of that account"
            return HubError(f"{repo} is gated: accept its terms on {self._address.url}/{repo}, and {then}")
        if isinstance(error, errors.DisabledRepoError):
            return HubError(f"{repo} was disabled by the hub: {self._address.url}/{repo} may say why")
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(f"{repo} has no revision {revision}: --revision takes a branch, a tag or a commit")
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return HubError(f"{repo} has lost a file since it was listed: run the command again")
        if isinstance(error, errors.RepositoryNotFoundError):
            return self._address.no_repository(repo, token)
        wait = seconds(error.response.headers.get("Retry-After"))
        return self._address.refusal(repo, status, str(error), token=token, wait=wait)

    def _unreachable(self, error: Any) -> HubError:
        """The sentence for an error of the connection."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "TimeoutException" in kinds:
            return self._address.unreachable(f"does not answer within {SECONDS:.0f} s")
        done = "cannot be reached" if kinds & {"ConnectError", "ProxyError"} else "broke the connection"
        return self._address.unreachable(f"{done} ({one_line(error) or type(error).__name__})")


def _client() -> ModuleType:
    """huggingface_hub with the modules that are used here. Raises HubError where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.hf_api
        import huggingface_hub.utils
    except ImportError:
        raise missing_package("huggingface_hub>=2,<3", "hub") from None
    return huggingface_hub


def _file(entry: Any) -> RemoteFile:
    if entry.lfs is not None:
        return RemoteFile(entry.path, entry.lfs.size, "sha256", entry.lfs.sha256)
    return RemoteFile(entry.path, entry.size, "git", entry.blob_id)
