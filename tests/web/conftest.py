"""The browser of the tests of pages."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.web.browsers import running_chromium


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with running_chromium() as browser:
        yield browser
