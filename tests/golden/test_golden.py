"""The golden files are the recorded data, and few enough for a repository."""

from pathlib import Path

import pytest

from tests.conftest import FULL_DATA, GOLDEN
from tests.golden.cut import cut


def test_the_files_are_cut_from_the_full_data(tmp_path: Path) -> None:
    if not FULL_DATA.is_dir():
        pytest.skip("the full reference data is not here (set DSV4_SHARED)")
    cut(FULL_DATA, tmp_path)
    files = [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 25
    for name in files:
        assert (GOLDEN / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_they_stay_small() -> None:
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*") if "__pycache__" not in file.parts) < 1.5e6
