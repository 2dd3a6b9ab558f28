"""The routes of stored responses: retrieve, delete, and list the items that one was made from."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv4.server.backend import Backend
from dsv4.server.storage.responses import StoredResponses
from dsv4.server.wire.errors import ApiError, invalid, show
from dsv4.server.wire.response import json_response

MOST_LISTED, USUALLY_LISTED = 100, 20

T = TypeVar("T")


class ResponseRoutes:
    """The responses of a key. Without a store every route is 404."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """The routes below a base."""
        return [
            Route("/responses/{id}", self.get, methods=["GET"]),
            Route("/responses/{id}", self.delete, methods=["DELETE"]),
            Route("/responses/{id}/input_items", self.inputs, methods=["GET"]),
            Route("/responses/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def get(self, request: Request) -> Response:
        if request.query_params.get("stream", "false").lower() != "false":
            raise invalid("stream", "only responses in the background can be streamed later; there are none")
        return json_response(await self._call(request, lambda store, key, id: store.get(key, id)))

    async def delete(self, request: Request) -> Response:
        await self._call(request, lambda store, key, id: store.delete(key, id))
        return json_response({"id": request.path_params["id"], "object": "response", "deleted": True})

    async def inputs(self, request: Request) -> Response:
        asked = request.query_params
        limit = asked.get("limit", str(USUALLY_LISTED))
        if not (limit.isdecimal() and len(limit) < 6 and 1 <= int(limit) <= MOST_LISTED):
            raise invalid("limit", f"must be in [1, {MOST_LISTED}], got {show(limit)}")
        order = asked.get("order", "desc")
        if order not in ("asc", "desc"):
            raise invalid("order", f"expected 'asc' or 'desc', got {show(order)}")
        items = await self._call(request, lambda store, key, id: store.inputs(key, id))
        if order == "desc":
            items.reverse()
        ids = [item["id"] for item in items]
        if (after := asked.get("after")) is not None:
            if after not in ids:
                raise invalid("after", f"the response has no item {show(after)}")
            items = items[ids.index(after) + 1 :]
        page = items[: int(limit)]
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        fields = {"first_id": first, "last_id": last, "has_more": len(page) < len(items)}
        return json_response({"object": "list", "data": page, **fields})

    async def cancel(self, request: Request) -> Response:
        raise ApiError(400, "only responses in the background can be cancelled; there are none", code="not_supported")

    async def _call(self, request: Request, work: Callable[[StoredResponses, str, str], T]) -> T:
        """The result of `work`, in a thread: it reads a file."""
        store = self._backend.responses
        if store is None:
            raise ApiError(404, "this server stores no responses: start it with --store DIR", code="no_store")
        return await asyncio.to_thread(work, store, request.state.key, request.path_params["id"])
