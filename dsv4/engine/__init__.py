"""The engine: requests in, tokens out. Tokens only; text, HTTP and files are elsewhere."""

from dsv4.engine.engine import Engine
from dsv4.engine.service import EngineService

__all__ = ["Engine", "EngineService"]
