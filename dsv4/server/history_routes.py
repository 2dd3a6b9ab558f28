"""The routes of the history: `/history` and `/history/{id}`, for the chat page."""

import asyncio
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv4.server.backend import Backend
from dsv4.server.storage.history import History
from dsv4.server.wire.errors import ApiError, invalid, show
from dsv4.server.wire.json import decode
from dsv4.server.wire.response import json_response


class HistoryRoutes:
    """Lists, reads, writes and deletes the conversations of a key. Without a history every route is 404."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """The routes below a base."""
        return [
            Route("/history", self.entries),
            Route("/history/{id}", self.get, methods=["GET"]),
            Route("/history/{id}", self.put, methods=["PUT"]),
            Route("/history/{id}", self.delete, methods=["DELETE"]),
        ]

    async def entries(self, request: Request) -> Response:
        found = await self._history.entries(request.state.key, request.query_params.get("search", ""))
        return json_response({"object": "list", "data": [asdict(entry) for entry in found]})

    async def get(self, request: Request) -> Response:
        document = await self._history.get(request.state.key, request.path_params["id"])
        # a large document takes its time to be written
        return _tagged(await asyncio.to_thread(json_response, document), document["updated"])

    async def put(self, request: Request) -> Response:
        history, backend, key = self._history, self._backend, request.state.key
        known = _unchanged_since(request.headers.get("if-match"))
        async with backend.bodies.reading(request, key, backend.settings.body_seconds) as body:
            context = backend.generator.context_length
            document = await backend.workers.run(request, body, lambda: decode(body, context))
            entry = await history.put(key, request.path_params["id"], document, known)
        return _tagged(json_response(asdict(entry)), entry.updated)

    async def delete(self, request: Request) -> Response:
        await self._history.delete(request.state.key, request.path_params["id"])
        return json_response({"id": request.path_params["id"], "deleted": True})

    @property
    def _history(self) -> History:
        if self._backend.history is None:
            raise ApiError(404, "this server keeps no history: start it with --history DIR", code="no_history")
        return self._backend.history


def _tagged(response: Response, updated: int) -> Response:
    response.headers["etag"] = f'"{updated}"'
    return response


def _unchanged_since(header: str | None) -> int | None:
    """`updated` in an If-Match header; 0 for a conversation that must be new."""
    if header is None:
        return None
    text = header.strip().removeprefix("W/").strip('"')
    if not text.isdecimal():
        raise invalid("if-match", f"expected the etag of a conversation, got {show(header)}")
    return int(text)
