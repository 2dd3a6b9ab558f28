"""Text in the forms people have: read, or refused with the place of what is wrong."""

import gzip
import os
from pathlib import Path

import pytest

from dsv4.training.text_files import lines_of, read_text

TEXT = "naïve café\nzwei 二\n"


def lines(folder: Path, content: bytes, *, replace: bool = False) -> list[str]:
    (folder / "a.txt").write_bytes(content)
    return list(lines_of(folder / "a.txt", replace=replace))


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        gzip.compress(TEXT.encode("utf-8-sig"), mtime=0),
        gzip.compress(TEXT.encode("utf-16"), mtime=0),
    ],
    ids=["utf-8", "mark", "utf-16", "utf-16-be", "utf-32", "crlf", "cr", "gzip", "gzip utf-16"],
)
def test_what_is_read(tmp_path: Path, content: bytes) -> None:
    assert lines(tmp_path, content) == TEXT.splitlines(keepends=True)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_empty_files_have_no_lines(tmp_path: Path, content: bytes) -> None:
    assert lines(tmp_path, content) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\r\ncd\xe9 e\n", r"a\.txt, line 2, column 3: 0xe9 is not valid UTF-8"),
        (b"\xef\xbb\xbfcaf\xe9", r"line 1, column 4: 0xe9"),
        (b"abc\xe2\x82", r"line 1, column 4: 0xe2 0x82 is not valid UTF-8 \(unexpected end of data\)"),
        (b"a" * (1 << 20) + b"\n\n\xffb", "line 3, column 1: 0xff"),
        (
            b"\xff\xfe" + "ab\nc".encode("utf-16-le") + b"\x3d\xd8x\0",
            "line 2, column 2: 0x3d 0xd8 is not valid UTF-16-LE",
        ),
        (b"ab\ncd\0ef", "line 2, column 3: a NUL byte"),
        (TEXT.encode("utf-16-le"), "line 1: many NUL bytes: UTF-16 or UTF-32 text without a byte order mark"),
        (gzip.compress(TEXT.encode() * 99, mtime=0)[:-12], r"a\.txt: damaged gzip file"),
        (b"\x1f\x8b nonsense", r"a\.txt: damaged gzip file"),
        (b"PK\x03\x04rest", r"a\.txt: is a zip archive: unpack it first"),
        (b"\x28\xb5\x2f\xfdrest", "is compressed with zstd"),
        (b"PAR1rest", "is a Parquet table"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lines(tmp_path, content)


def test_invalid_text_can_be_replaced(tmp_path: Path) -> None:
    assert lines(tmp_path, b"caf\xe9\na\0b\n", replace=True) == ["caf\ufffd\n", "a\ufffdb\n"]


def test_characters_and_line_ends_may_lie_across_pieces(tmp_path: Path) -> None:
    content = b"a" * ((1 << 20) - 1) + b"\r\n" + b"b" * ((1 << 20) - 2) + "€\n".encode() + b"c"
    assert [len(line) for line in lines(tmp_path, content)] == [1 << 20, 1 << 20, 1]


def test_pipes_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        read_text(tmp_path / "pipe")
