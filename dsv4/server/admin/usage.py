"""Tokens and costs from the ledger, for the page of them."""

import asyncio
from dataclasses import asdict
from typing import Any

from dsv4.server.accounts.ledger import first_day, read_usage
from dsv4.server.backend import Backend
from dsv4.server.wire.errors import naming_field


async def usage_of(backend: Backend, key: str, since: str | None) -> dict[str, Any]:
    """The rows of the ledger from a day on, as `dsv4 usage` reads them: an operator sees all keys, others their own.
    Raises ApiError 400 for another `since` than a day or a number of days."""
    with naming_field("since"):
        first = first_day(since)
    found = {"ledger": backend.ledger is not None, "operator": backend.settings.keys.sees_all(key), "rows": []}
    if backend.ledger is not None:
        only = None if found["operator"] else key
        rows = await asyncio.to_thread(read_usage, backend.ledger.file, since=first, key=only)
        found["rows"] = [asdict(row) for row in rows]
    return found
