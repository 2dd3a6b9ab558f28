"""ModelScope: the client is modelscope_hub, with its variables (MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN)."""

from collections.abc import Iterator
from contextlib import contextmanager

from dsv4.hub.sources import CHUNK, Address, Body, HubError, Listing, RemoteFile, missing_package, one_line


class ModelScope:
    """ModelScope's hub. endpoint: its address; None is that of MODELSCOPE_ENDPOINT.

    It names no commit for a branch, so a listing keeps the revision; the hash of each file still pins its content.
    """

    name = "ModelScope"
    default_revision = "master"

    def __init__(self, endpoint: str | None = None) -> None:
        try:
            import modelscope_hub  # pyrefly: ignore[missing-import]  (an extra)
            from requests.exceptions import RequestException
        except ImportError:
            raise missing_package("modelscope-hub>=0.4.6,<1", "modelscope") from None
        config = modelscope_hub.HubConfig(endpoint=endpoint)
        self._errors, self._broken = modelscope_hub, (modelscope_hub.NetworkError, RequestException)
        self._api, self._token = modelscope_hub.HubApi(config), bool(config.token)
        self._address = Address(str(config.endpoint), "MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN")

    @property
    def url(self) -> str:
        return self._address.url

    def listing(self, repo: str, revision: str) -> Listing:
        with self._explained(repo, revision):
            try:
                entries = self._api.list_repo_files(repo, "model", revision=revision)
            except (ValueError, TypeError, AttributeError) as error:  # no JSON, or not that of a hub
                if isinstance(error, self._errors.HubError):
                    raise
                raise self._address.no_hub(type(error).__name__) from None
        files = (RemoteFile(e.path, e.size, "sha256", e.sha256 or None) for e in entries if not e.is_dir)
        return Listing(repo, revision, tuple(files))

    @contextmanager
    def open(self, listing: Listing, file: RemoteFile, offset: int) -> Iterator[Body]:
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with self._explained(listing.repo, listing.commit):
            response = self._api.legacy.download_stream(
                listing.repo, "model", file.name, listing.commit, headers=headers
            )
            with response:
                start = offset if response.status_code == 206 else 0
                yield Body(start, response.iter_content(CHUNK))

    @contextmanager
    def _explained(self, repo: str, revision: str) -> Iterator[None]:
        """While entered, errors of the client become sentences."""
        try:
            yield
        except self._errors.APIError as error:
            status = 429 if isinstance(error, self._errors.RateLimitError) else error.status_code or 500
            wait = getattr(error, "retry_after", None)
            if status == 404 and revision != self.default_revision:
                raise HubError(f"{self._address.url} has no {repo} with the revision {revision}: check both") from None
            raise self._address.refusal(repo, status, error.message, token=self._token, wait=wait) from None
        except self._broken as error:
            raise self._address.unreachable(f"cannot be reached ({one_line(error)})") from None
