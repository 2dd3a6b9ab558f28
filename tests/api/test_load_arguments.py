"""`dsv4.load` and the server's settings judge numbers and files before a weight is read."""

import math
from pathlib import Path
from typing import Any

import pytest

import dsv4
from dsv4.api import loading
from dsv4.server import Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, r"threads must be in \[1, 4096\], got 0"),
        ({"threads": 4097}, r"threads must be in \[1, 4096\], got 4097"),
        ({"threads": 2.5}, r"threads must be in \[1, 4096\], got 2\.5"),
        ({"sequences": 0}, r"sequences must be an integer in \[1, 2147483648\], got 0"),
        ({"queue": -1}, r"queue must be an integer in \[1, 2147483648\], got -1"),
        ({"step_tokens": 2**40}, r"step_tokens must be an integer in \[1, 2147483648\], got 1099511627776"),
        ({"step_tokens": math.inf}, "step_tokens must be finite"),
        ({"sequences": 2.0}, r"sequences must be an integer in \[1, 2147483648\], got 2\.0"),
        ({"slowdown": 1}, "slowdown must be more than 1, got 1"),
        ({"slowdown": math.nan}, "slowdown must be more than 1, got nan"),
        ({"prefix_folder": Path("TMP/new"), "prefix_bytes": 5}, r"prefix_bytes must be an integer in \[1048576, \d+\]"),
        ({"prefix_folder": Path("TMP/file")}, "the folder for prefixes '.*file' cannot be used: .*file is a file"),
        ({"prefix_folder": Path("TMP/file/below")}, "the folder for prefixes .* cannot be used: .*file is a file"),
        ({"adapter": "TMP/none"}, "none"),
        ({"context_length": 2.5}, r"context_length must be in \[1, 1048576\], got 2\.5"),
        ({"context_length": "8"}, r"context_length must be in \[1, 1048576\], got '8'"),
        ({"reuse": "full"}, r"reuse must be a dsv4\.cache\.prefix\.ReusePolicy, got 'full'"),
        ({"slowdown": "x"}, "slowdown must be more than 1, got 'x'"),
        ({"fused": "yes"}, "fused must be one of True, False, None, got 'yes'"),
        ({"speculate": 1}, "speculate must be one of True, False, got 1"),
        ({"prefix_folder": Path("TMP/nowhere/p")}, "nowhere is a link that leads nowhere"),
        ({"sequences": 10**9}, "nano does not fit: .* --sequences 8 needs at least"),
        ({"step_tokens": 2**30}, "nano does not fit: .* step_tokens 512 needs at least"),
    ],
)
def test_arguments_are_judged_before_a_weight_is_read(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    monkeypatch.setattr(loading, "load_into", lambda *_, **__: pytest.fail("weights are read"))
    given: dict[str, Any] = {
        name: type(value)(str(value).replace("TMP", str(tmp_path))) if isinstance(value, str | Path) else value
        for name, value in options.items()
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dsv4.load(**{"context_length": 256, **given})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_requests": -1}, "max_requests must be a whole number of at least 0, got -1"),
        ({"max_requests": None}, "max_requests must be a whole number of at least 0, got None"),
        ({"most_body_bytes": 0}, "most_body_bytes must be a whole number of at least 1, got 0"),
        ({"keep_alive": 0}, r"keep_alive must be seconds in \(0, 86,400\], got 0"),
        ({"keep_alive": math.nan}, r"keep_alive must be seconds in \(0, 86,400\], got nan"),
        ({"body_seconds": math.inf}, r"body_seconds must be seconds in \(0, 86,400\], got inf"),
    ],
)
def test_settings_of_a_server_have_ranges(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**fields)
