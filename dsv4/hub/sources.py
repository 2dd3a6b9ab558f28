"""What a hub is to `pull`: a list of files with sizes and hashes, and the bytes of a file from an offset on."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

CHUNK = 1 << 18  # bytes of a body that are handled at once; what a lost connection may cost


class HubError(OSError):
    """A hub refuses, or cannot be reached. The text is a sentence for the user: what happened, and what to do.

    again: whether the same request may succeed later; wait: after how many seconds, where the hub says it.
    """

    def __init__(self, text: str, *, again: bool = False, wait: float | None = None) -> None:
        super().__init__(text)
        self.again, self.wait = again, wait


class OfflineError(HubError):
    """The user has forbidden the network."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. name: with folders, separated by slashes; digest: lower-case hex, None where the hub
    gives none; hashed: what the digest is of (`git`: SHA-1 of the blob as git counts it)."""

    name: str
    size: int
    hashed: Literal["sha256", "git"] = "sha256"
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one revision. repo: as the hub calls it today; commit: what the revision means now,
    or the revision itself where the hub does not say."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes on their way. start: the offset of the first one, which is 0 where a hub does not serve ranges."""

    start: int
    chunks: Iterator[bytes]


class Hub(Protocol):
    """A hub. Both calls raise HubError and no other error of the network."""

    name: str
    default_revision: str

    @property
    def url(self) -> str: ...

    def listing(self, repo: str, revision: str) -> Listing: ...

    def open(self, listing: Listing, file: RemoteFile, offset: int) -> AbstractContextManager[Body]: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where a hub is, and which variables of its client say so; for the sentences of its errors."""

    url: str
    url_variable: str
    token_variable: str

    def unreachable(self, what: str) -> HubError:
        """No answer, or a lost connection; `again`, because networks come back."""
        host = urlsplit(self.url).netloc or self.url
        advice = f"check the network, the proxy (HTTPS_PROXY) and {self.url_variable}"
        return HubError(f"{host} {what}: {advice}", again=True)

    def no_hub(self, what: str) -> HubError:
        """An answer that no hub gives: mostly a proxy, or the login page of a network."""
        return HubError(
            f"{self.url} does not answer like a hub ({what}): check {self.url_variable}, and whether a proxy or a "
            "login page of the network is in between"
        )

    def no_repository(self, repo: str, token: bool) -> HubError:
        """token: whether one was sent."""
        why = "or the token may not read it" if token else f"and a private one needs {self.token_variable}"
        return HubError(f"{self.url} has no repository {repo}: check the spelling, {why}")

    def refusal(self, repo: str, status: int, detail: str, *, token: bool, wait: float | None = None) -> HubError:
        """A status of HTTP that needs no knowledge of the hub. wait: what it said with 429, in seconds."""
        variable = self.token_variable
        if status == 401:
            return HubError(f"{self.url} refuses the token (401): renew {variable}, or unset it for public models")
        if status == 403:
            return HubError(f"{self.url} forbids {repo} (403): the token ({variable}) lacks the right to read it")
        if status == 404:
            return self.no_repository(repo, token)
        if status == 429:
            more = "" if token else f"; a token ({variable}) is allowed more"
            text = f"{self.url} gets too many requests from here (429): try again in some minutes{more}"
            return HubError(text, again=True, wait=wait)
        if status >= 500 or status == 408:
            return HubError(f"{self.url} fails ({status}): try again later", again=True)
        return HubError(f"{self.url} refuses {repo} ({status}): {one_line(detail)}")


def one_line(text: object) -> str:
    """The text of an error, short and on one line."""
    return " ".join(str(text).split())[:160]


def seconds(retry_after: str | None) -> float | None:
    """A Retry-After in seconds; a date counts as none."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None


def missing_package(package: str, extra: str) -> HubError:
    """The error for a hub whose client is not installed. package: with its versions, as pip takes it."""
    return HubError(
        f"{package.partition('>')[0]} is not installed: `{sys.executable} -m pip install '{package}'` installs it, and "
        f"so does the extra `{extra}` of dsv4"
    )
