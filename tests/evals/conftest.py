"""The small tokenizer of the server's tests."""

from tests.server.conftest import tokenizer

__all__ = ["tokenizer"]
