"""What tests of post-training share."""

import pytest

from dsv4.encoding import Tokenizer, train_bpe
from tests.engine.small_service import service

__all__ = ["service"]  # the fixture

CORPUS = 'add 17 and 25: the sum is 42\nname="add" string="false"\nError: there is no tool; 1 + 2 = 3\n' * 20


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small vocabulary with the control tokens of the chat."""
    return train_bpe([CORPUS], 400, tmp_path_factory.mktemp("tokenizer"))
