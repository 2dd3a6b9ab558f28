"""The HTTP server: requests in the form of the official service to a `TokenGenerator`, and its tokens back.

Reads in this order: `app` (routes and process borders), `openai_request` (what a request may say), `openai`
(the run and its two answers), `answer` (tokens to deltas), `sse` (the wire). Needs no torch.
"""

from dsv4.server.app import create_app
from dsv4.server.errors import ApiError

__all__ = ["ApiError", "create_app"]
