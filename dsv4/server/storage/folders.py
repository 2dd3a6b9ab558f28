"""Folders that the server keeps its clients' texts in: readable by their user only, with errors for clients."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv4.files import is_full
from dsv4.observe import log
from dsv4.server.wire.errors import ApiError

# a write is refused while the disk has less room than this, so that a full disk does not harm other programs
LEAST_FREE_BYTES = 64 << 20
# the SDKs send a request with a 5xx status again; another attempt would meet the same full disk
NO_RETRY = {"x-should-retry": "false"}


def private_folder(folder: Path) -> Path:
    """`folder`, created with its parents if it is missing; a new one is readable by its user only. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def key_digest(key: str) -> str:
    """A name for what a key keeps: letters and digits, since the names of keys hold any character."""
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def check_room(folder: Path, what: str, size: int = 0) -> None:
    """Raise ApiError 507 if the disk of `folder` has no room for `size` more bytes."""
    if shutil.disk_usage(folder).free < size + LEAST_FREE_BYTES:
        raise storage_full(f"{what}: the server's disk is full", "disk_full")


def storage_full(message: str, code: str) -> ApiError:
    """A 507 that no SDK retries."""
    return ApiError(507, message, code=code, headers=NO_RETRY)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """An OSError inside the block becomes an ApiError: 507 for a full disk, else 500. The log has the file's name."""
    try:
        yield
    except OSError as error:
        log("storage_failed", what=what, error=str(error))
        if is_full(error):
            raise storage_full(f"{what}: the server's disk is full", "disk_full") from error
        raise ApiError(500, f"{what}: {error.strerror or 'the disk failed'}", code="storage_failed") from error
