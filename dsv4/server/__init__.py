"""The HTTP server: requests in the form of the official service go to a `TokenGenerator`, its tokens come back.

Read in this order: `app` (routes), `guard` (keys, limits, admission), `wire` (bodies, JSON, events, errors), `accounts`
(usage, prices, metrics), `storage` (what is kept for clients), `backend` (what all requests share), then `dialects`:
the fields of a request, the common `GenerationRequest`, its `prompt`, the `job` that generates an answer, and the reply
in the dialect's form. A room imports only rooms named before it. The server needs no torch.
"""

from dsv4.server.app import create_app
from dsv4.server.backend import Settings
from dsv4.server.guard.keys import Keys
from dsv4.server.wire.errors import ApiError

__all__ = ["ApiError", "Keys", "Settings", "create_app"]
