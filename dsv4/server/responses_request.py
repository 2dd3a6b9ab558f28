"""The earlier place of `dialects.responses.request`, for programs that import it from here."""

from dsv4.server.dialects.responses.request import parse_responses, tools_of

__all__ = ["parse_responses", "tools_of"]
