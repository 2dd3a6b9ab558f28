"""The server that `dsv4 verify` starts for a folder."""

import sys
from pathlib import Path

import pytest

from dsv4.cli.verify import NOT_RUN, _endpoint, verify


def test_the_server_has_no_keys_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "server"
    server.write_text('#!/bin/sh\necho "ready in 0 s: http://keys-${DSV4_API_KEYS:-none} x" >&2\nexec sleep 60\n')
    server.chmod(0o700)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "executable", str(server))
    monkeypatch.setenv("DSV4_API_KEYS", "secret-of-ann")
    with _endpoint(str(tmp_path), "") as endpoint:
        assert endpoint.url == "http://keys-none"


def test_a_folder_that_is_not_served_could_not_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = tmp_path / "server"
    server.write_text('#!/bin/sh\necho "no weights here" >&2\nexit 1\n')
    server.chmod(0o700)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "executable", str(server))
    with pytest.raises(SystemExit) as ended:
        verify(str(tmp_path))
    assert ended.value.code == NOT_RUN
    assert "cannot be checked: the server of this folder did not start:\nno weights here" in capsys.readouterr().err
