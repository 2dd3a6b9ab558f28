"""Fixtures for every test folder."""

import os
import signal
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# a shell ignores Ctrl-C in what it starts in the background, and so would every process that a test interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tests run beside each other; small tensors gain nothing from more


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded reference data that lies beside a development checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("DSV4_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("reference data is not here (set DSV4_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Each test draws its own random numbers, the same in every run and order."""
    torch.manual_seed(sum(request.node.nodeid.encode()) * 7919)
