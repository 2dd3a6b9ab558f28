"""The sources of the pages: types and unit tests, by Node."""

import shutil
import subprocess

import pytest

from tests.conftest import ROOT

WEB = ROOT / "web"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.web,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
    pytest.mark.skipif(not (WEB / "node_modules" / "typescript").is_dir(), reason="npm ci was not run in web/"),
]


@pytest.mark.parametrize("script", ["check", "test"])
def test_types_and_units(script: str) -> None:
    result = subprocess.run(["npm", "run", "--silent", script], cwd=WEB, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
