"""The HTTP server: requests in the form of the official service to a `TokenGenerator`, and its tokens back.

Reads in this order: `app` (routes), `guard` (who may use it, and how much), `wire` (bodies in, events and errors out),
then `dialects`: the fields of a request, the one common `request` they become, its `prompt`, one answer in the making
(`job`), and its reply in the dialect's form. `accounts` counts what was used. Needs no torch.
"""

from dsv4.server.app import create_app
from dsv4.server.backend import Settings
from dsv4.server.guard.keys import Keys
from dsv4.server.wire.errors import ApiError

__all__ = ["ApiError", "Keys", "Settings", "create_app"]
