"""The routes below `/admin`, which the pages `/engine`, `/usage`, `/training` and `/model` read. They need a key where
the server has keys."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv4.server.admin.engine import EngineState
from dsv4.server.admin.runs import Runs
from dsv4.server.admin.usage import usage_of
from dsv4.server.backend import Backend
from dsv4.server.wire.errors import ApiError, invalid, operators_only, show
from dsv4.server.wire.response import json_response


class AdminRoutes:
    """The routes that show the state of one server and cancel requests."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._engine = EngineState(backend)
        self._architecture: dict[str, Any] | None = None

    def routes(self) -> list[Route]:
        """The routes below a base."""
        gets = {
            "/admin/engine": self.engine,
            "/admin/usage": self.usage,
            "/admin/runs": self.runs,
            "/admin/runs/{run:path}": self.run,
            "/admin/model": self.model,
        }
        return [
            *(Route(path, route) for path, route in gets.items()),
            Route("/admin/engine/cancel/{id}", self.cancel, methods=["POST"]),
        ]

    async def engine(self, request: Request) -> Response:
        request.state.polled = True
        experts = _whole(request, "experts") > 0
        return json_response(await self._engine.of_key(_key(request), _whole(request, "since"), experts=experts))

    async def cancel(self, request: Request) -> Response:
        """End one answer. A key that is no operator's ends only its own."""
        wanted, key = request.path_params["id"], _key(request)
        tell = self._backend.active.get(wanted)
        if tell is None or not (self._backend.settings.keys.sees_all(key) or tell().key == key):
            raise ApiError(404, f"request: {show(wanted)} is not running", param="request", code="not_found")
        return json_response({"cancelled": self._backend.generator.cancel(wanted)})

    async def usage(self, request: Request) -> Response:
        since = request.query_params.get("since")
        return json_response(await usage_of(self._backend, _key(request), since))

    async def runs(self, request: Request) -> Response:
        self._check_operator(request)
        folder = self._backend.settings.runs
        found = [] if folder is None else await asyncio.to_thread(Runs(folder).listed)
        return json_response({"folder": folder is not None, "runs": found})

    async def run(self, request: Request) -> Response:
        self._check_operator(request)
        folder, name = self._backend.settings.runs, request.path_params["run"]
        if folder is None:
            raise ApiError(404, "run: this server has no folder of runs (--runs)", param="run", code="not_found")
        request.state.polled = True
        start, file = _whole(request, "from"), _whole(request, "file")
        return json_response(await asyncio.to_thread(Runs(folder).lines, name, start, file))

    async def model(self, request: Request) -> Response:
        backend = self._backend
        if self._architecture is None and backend.architecture is not None:
            self._architecture = dict(await asyncio.to_thread(backend.architecture))
        known = {
            "model": backend.model_name,
            "context_length": backend.generator.context_length,
            "vocabulary": backend.tokenizer.vocab_size,
        }
        return json_response({**known, "architecture": self._architecture})

    def _check_operator(self, request: Request) -> None:
        """Runs are no key's own, and their samples show what a model was trained on. Raises ApiError 403."""
        if not self._backend.settings.keys.sees_all(_key(request)):
            raise operators_only("see training runs")


def _key(request: Request) -> str:
    return getattr(request.state, "key", "")


def _whole(request: Request, name: str) -> int:
    """A number of the query, 0 without one. Raises ApiError 400."""
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise invalid(name, f"expected a whole number of at least 0, got {show(text)}")
    return int(text)
