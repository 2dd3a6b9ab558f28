"""Reading text files: UTF-8, UTF-16 and UTF-32, gzip, any line ends; other files are refused by name.

Read as a stream of lines. UTF-8 is assumed; a byte order mark says UTF-16 or UTF-32 and is never part of the text. Line
ends become "\\n". Bytes that are not valid in the encoding, and NUL bytes, raise ValueError with file, line and column.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

_CHUNK = 1 << 20
_SAMPLE = 4096
_GZIP = b"\x1f\x8b"
# UTF-32 first: its little-endian mark begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it first (gzip is read as it is)"),
    (b"BZh", "compressed with bzip2: unpack it first (gzip is read as it is)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first (gzip is read as it is)"),
    (b"PAR1", "a Parquet table: write its texts as JSON lines first"),
    (b"ARROW1", "an Arrow table: write its texts as JSON lines first"),
    (b"%PDF-", "a PDF document: extract its text first"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched (git lfs pull)"),
)
INVALID = "\ufffd"


def lines_of(file: Path, *, replace: bool = False) -> Iterator[str]:
    """The lines of a text file, each with its "\\n" but perhaps the last. replace: invalid bytes and NUL become U+FFFD
    instead of an error.

    Raises ValueError naming file, line and column of what is no text, OSError for files that cannot be read.
    """
    if not file.is_file():
        raise ValueError(f"{file}: not a regular file; text is read more than once")
    pieces: list[str] = []
    for text in _decoded(file, replace):
        first, *more = text.split("\n")
        pieces.append(first)
        if more:
            yield "".join(pieces) + "\n"
            yield from (line + "\n" for line in more[:-1])
            pieces = [more[-1]]
    if last := "".join(pieces):
        yield last


def read_text(file: Path) -> str:
    """A whole text file; errors as in `lines_of`."""
    return "".join(lines_of(file))


def _decoded(file: Path, replace: bool) -> Iterator[str]:
    """The text in pieces, line ends translated."""
    with file.open("rb") as raw:
        packed = raw.peek(2).startswith(_GZIP)
        try:
            # the wrapper provides peek, which a GzipFile lacks
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), _SAMPLE) if packed else raw
            yield from _Decoder(file, stream, replace)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: damaged gzip file ({error})") from None


class _Peekable(Protocol):
    """A buffered stream of bytes."""

    def peek(self, size: int, /) -> bytes: ...

    def read(self, size: int, /) -> bytes: ...


class _Decoder:
    """Decodes a stream piece by piece and counts lines and columns for messages."""

    def __init__(self, file: Path, stream: _Peekable, replace: bool) -> None:
        self._file, self._stream, self._replace = file, stream, replace
        self._line, self._column = 1, 1

    def __iter__(self) -> Iterator[str]:
        head = self._head()
        named = next((name for mark, name in _MARKS if head.startswith(mark)), None)
        self._refuse_foreign(head, named)
        decoder = codecs.getincrementaldecoder(named or "utf-8")("replace" if self._replace else "strict")
        ends = io.IncrementalNewlineDecoder(None, translate=True)
        while True:
            chunk = self._stream.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                good = codecs.decode(error.object[: error.start], error.encoding)
                self._move(ends.decode(good, final=True))
                raise self._invalid(error) from None
            text = ends.decode(text, final=not chunk)
            if self._replace:
                text = text.replace("\0", INVALID)
            if "\0" in text:
                self._move(text[: text.index("\0")])
                raise ValueError(f"{self._place()}: a NUL byte; this is no text file")
            self._move(text)
            if text:
                yield text
            if not chunk:
                return

    def _head(self) -> bytes:
        return self._stream.peek(_SAMPLE)[:_SAMPLE]

    def _refuse_foreign(self, head: bytes, named: str | None) -> None:
        for mark, what in _FOREIGN:
            if head.startswith(mark):
                raise ValueError(f"{self._file}: is {what}")
        if named is None and head.count(0) > len(head) // 5:
            wide = "UTF-16 or UTF-32 text without a byte order mark, or no text at all"
            raise ValueError(f"{self._file}, line 1: many NUL bytes: {wide}; save it as UTF-8")

    def _move(self, text: str) -> None:
        newlines = text.count("\n")
        self._line += newlines
        self._column = len(text) - text.rindex("\n") if newlines else self._column + len(text)

    def _place(self) -> str:
        return f"{self._file}, line {self._line}, column {self._column}"

    def _invalid(self, error: UnicodeDecodeError) -> ValueError:
        found = " ".join(f"0x{byte:02x}" for byte in error.object[error.start : max(error.end, error.start + 1)])
        return ValueError(f"{self._place()}: {found} is not valid {error.encoding.upper()} ({error.reason})")
