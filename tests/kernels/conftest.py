"""What the tests of native kernels share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def without_gradients() -> Iterator[None]:
    """Native kernels run only while no gradient is recorded."""
    with torch.no_grad():
        yield
