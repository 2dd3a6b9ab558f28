"""Routes beside the answers: models, health, version, metrics, and stubs of the official service."""

import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv4.server.backend import Backend
from dsv4.server.backend.models import ALIASES, check_model, model_entry
from dsv4.server.dialects.request import supported_efforts
from dsv4.server.openapi import openapi_document
from dsv4.server.props import described
from dsv4.server.wire.errors import ApiError
from dsv4.server.wire.json import to_json
from dsv4.server.wire.response import json_response


class PlainRoutes:
    """The routes of one server that generate no answer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._started = int(time.time())

    def routes(self) -> list[Route]:
        """The routes below a base."""
        gets = {
            "/models": self.models,
            "/models/{model_id:path}": self.model,
            "/health": self.health,
            "/ready": self.ready,
            "/version": self.version,
            "/props": self.props,
            "/metrics": self.metrics,
            "/user/balance": self.balance,
            "/openapi.json": self.openapi,
        }
        return [
            *(Route(path, route) for path, route in gets.items()),
            Route("/embeddings", self.embeddings, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        names = dict.fromkeys((self._backend.model_name, *ALIASES))
        # the last three are for Anthropic's clients
        page = {"has_more": False, "first_id": self._backend.model_name, "last_id": ALIASES[-1]}
        return json_response({"object": "list", "data": [self._entry(name) for name in names], **page})

    async def model(self, request: Request) -> Response:
        model_id = request.path_params["model_id"]
        check_model(model_id, self._backend.model_name, any_name=self._backend.settings.any_model)
        return json_response(self._entry(model_id))

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok", "model": self._backend.model_name})

    async def ready(self, request: Request) -> Response:
        if self._backend.admission.draining:
            return json_response({"status": "stopping"}, 503)
        if (problem := self._backend.generator.failing) is not None:
            return json_response({"status": "failing", "reason": problem}, 503)
        return json_response({"status": "ready", "model": self._backend.model_name})

    async def version(self, request: Request) -> Response:
        return json_response({"version": _version()})

    async def props(self, request: Request) -> Response:
        return json_response({**described(self._backend), "version": _version()})

    async def openapi(self, request: Request) -> Response:
        return Response(_openapi(), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        counters = self._backend.counters() if self._backend.counters else {}
        text = self._backend.metrics.text(self._backend.running, counters)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def balance(self, request: Request) -> Response:
        info = {"currency": "USD", "total_balance": "0.00", "granted_balance": "0.00", "topped_up_balance": "0.00"}
        return json_response({"is_available": True, "balance_infos": [info]})

    async def embeddings(self, request: Request) -> Response:
        raise ApiError(400, "this model makes no embeddings: it only writes text", code="not_supported")

    def _entry(self, name: str) -> dict[str, Any]:
        backend = self._backend
        efforts = supported_efforts(backend.tokenizer.dialect)
        context = backend.generator.context_length
        return model_entry(
            name,
            backend.model_name,
            created=self._started,
            context_length=context,
            efforts=efforts,
            example_prompts=backend.defaults.example_prompts,
        )


@cache
def _openapi() -> bytes:
    """The description, made once."""
    return to_json(openapi_document(_version()))


def _version() -> str:
    try:
        return version("dsv4")
    except PackageNotFoundError:
        return "unknown"
