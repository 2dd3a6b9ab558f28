"""A JSON object from a file that may be broken, of another format, hostile, or missing.

Sizes are limited before a file is read. Messages name the usual wrong contents (a Git LFS pointer, an error page).
"""

import json
import re
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
_HEAD_BYTES = 512


def size_of(file: Path) -> int:
    """Bytes of a regular file. Raises FileNotFoundError, and ValueError for a folder, pipe, socket or device: opening
    one of these may block for ever."""
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{file}: {_kind_of(mode)}, not a regular file")
    return file.stat().st_size


def _kind_of(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for test, name in kinds if test(mode)), "a special file")


def foreign_content(head: bytes) -> str | None:
    """The kind of a file by its first bytes, if it is neither safetensors nor JSON; None if the kind is unknown."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if not head:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the file: run `git lfs pull` in its repository, or download it again"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<!--")):
        return "an HTML page in place of the file (a download that failed)"
    known = (
        (b"GGUF", "a GGUF file: `dsv4 convert FILE FOLDER` makes a folder of it that loads"),
        (b"PK\x03\x04", "a zip or PyTorch pickle file: pickle files can run code and are not read"),
        (b"\x80\x02", "a pickle file: it can run code and is not read"),
        (b"\x1f\x8b", "compressed with gzip: unpack it first"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
        (b"\xfd7zXZ", "compressed with xz: unpack it first"),
        (b"BZh", "compressed with bzip2: unpack it first"),
        (b"\x93NUMPY", "a NumPy file"),
        (b"\x89HDF", "an HDF5 file"),
    )
    for magic, name in known:
        if head.startswith(magic):
            return name
    if len(head) >= 64 and not any(head):
        return "the file begins with zeros (a download that was not finished?)"
    return None


def text_content(head: bytes) -> str | None:
    """What a file that should hold numbers says instead, where its first bytes are text: a server's message."""
    line = head.strip().splitlines()[0][:60] if head.strip() else b""
    if not line or any((byte < 0x20 and byte not in b"\t\n\r") or byte >= 0x7F for byte in head):
        return None
    return f"text in place of the file (a download that failed?): {line.decode('ascii')!r}"


def read_object(file: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises FileNotFoundError or ValueError, which names the file and what is wrong."""
    return parse_object(str(file), read_bounded(file, most_bytes))


def read_bounded(file: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """A regular file's bytes. Raises FileNotFoundError, and ValueError for one that is larger or no regular file."""
    size = size_of(file)
    if size > most_bytes:
        raise ValueError(f"{file}: {size:,} bytes are above the limit of {most_bytes:,} for such a file")
    return file.read_bytes()


def parse_object(source: str, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; a UTF-8 byte order mark is skipped. Raises ValueError naming `source`."""
    foreign = foreign_content(data[:_HEAD_BYTES])
    if foreign:
        raise ValueError(f"{source}: {foreign}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise ValueError(f"{source}: not valid JSON: UTF-16 or UTF-32 text, expected UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{source}: not valid UTF-8 at byte {error.start} (line {line})") from None
    try:
        raw = json.loads(text, object_pairs_hook=_once)
    except _TwiceError as error:
        raise ValueError(
            f"{source}: the name {error.name!r} occurs twice (line {last_line(text, error.name)})"
        ) from None
    except RecursionError:
        raise ValueError(f"{source}: not valid JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: not valid JSON: {error}") from None
    except ValueError:  # Python's own limit on digits
        raise ValueError(f"{source}: not valid JSON: a number has more than 4,300 digits") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{source}: expected a JSON object, got {type(raw).__name__}")
    return raw


class _TwiceError(Exception):
    """A name that occurs twice in one object. Readers disagree on which value counts."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _TwiceError(name)
            seen.add(name)
    return found


def last_line(text: str, name: str) -> int:
    """The line, from 1, of the last place where `name` is a key; 1 if no such place is found."""
    places = list(re.finditer(rf"{re.escape(json.dumps(name, ensure_ascii=False))}\s*:", text))
    return text.count("\n", 0, places[-1].start()) + 1 if places else 1


def line_of_field(text: str, message: str) -> int | None:
    """The line of the field that an error message begins with (`a.b must be ...`); None if the file has no such
    field."""
    path = re.match(r"[\w.]+", message)
    at = -1
    for name in path[0].split(".") if path else ():
        key = re.compile(rf'"{re.escape(name)}"\s*:').search(text, at + 1)
        if key is None:
            return None
        at = key.start()
    return text.count("\n", 0, at) + 1 if at >= 0 else None
