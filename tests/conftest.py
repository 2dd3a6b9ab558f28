"""Fixtures for every test folder."""

import ast
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# a shell ignores Ctrl-C in what it starts in the background, and so would every process that a test interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tests run beside each other; small tensors gain nothing from more


def without_collections(parse: Callable[..., ast.AST]) -> Callable[..., ast.AST]:
    """`ast.parse` that no collection interrupts. A collection may run a finaliser that parses too, as pytest does to
    show what a finaliser raised; in Python 3.11 the interrupted parse then fails with a SystemError ("AST constructor
    recursion depth mismatch", docs/log.md). Later versions collect between two operations only."""

    @wraps(parse)
    def whole(*arguments: object, **options: object) -> ast.AST:
        on = gc.isenabled()
        gc.disable()
        try:
            return parse(*arguments, **options)
        finally:
            if on:
                gc.enable()

    return whole


if sys.version_info < (3, 12):
    ast.parse = without_collections(ast.parse)  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What a test sets is not left to the next one: products on other numbers of threads have other last bits."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


GOLDEN = ROOT / "tests" / "golden"
FULL_DATA = Path(os.environ.get("DSV4_SHARED", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Recorded reference data: all of it where it lies beside the checkout, else the part in tests/golden."""
    return FULL_DATA if FULL_DATA.is_dir() else GOLDEN


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """All of the recorded reference data; tests that need more than tests/golden has skip without it."""
    if not FULL_DATA.is_dir():
        pytest.skip("the full reference data is not here (set DSV4_SHARED)")
    return FULL_DATA


@pytest.fixture(scope="session", params=["tiny_release", "flash_like"])
def reference_folder(request: pytest.FixtureRequest) -> Path:
    """A checkpoint in the released layout with logits that another implementation computed: a small one of
    tests/golden, and a larger one, which needs the full recorded data."""
    folder = (GOLDEN if request.param == "tiny_release" else FULL_DATA) / "reference" / request.param
    if not (folder / "reference_fp32.safetensors").is_file():
        pytest.skip("the full reference data is not here (set DSV4_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Each test draws its own random numbers, the same in every run and order."""
    torch.manual_seed(sum(request.node.nodeid.encode()) * 7919)
