"""The HTTP server: requests in the form of the official service to a `TokenGenerator`, and its tokens back.

Reads in this order: `app` (routes), `border` (keys, log, errors), `openai_request` and `openai_ask` (what a request may
say), `ask` (the same for every dialect), `prompt` and `replay` (its tokens), `job` (one answer in the making), `openai`
(its two forms), `sse` (the wire). The other dialects have files of the same names. Needs no torch.
"""

from dsv4.server.app import create_app
from dsv4.server.backend import Settings
from dsv4.server.errors import ApiError
from dsv4.server.keys import Keys

__all__ = ["ApiError", "Keys", "Settings", "create_app"]
