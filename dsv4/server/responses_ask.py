"""The earlier place of `dialects.responses.read`, for programs that import it from here."""

from dsv4.server.dialects.responses.read import read_responses as responses_ask

__all__ = ["responses_ask"]
