"""What the tests of native kernels share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def without_gradients() -> Iterator[None]:
    """Native kernels run only while no gradient is recorded; afterwards one thread again, as for every test."""
    with torch.no_grad():
        yield
    torch.set_num_threads(1)
