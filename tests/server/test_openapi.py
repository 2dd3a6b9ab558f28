"""The OpenAPI description: every route is in it, and requests made from it never give a server error."""

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from starlette.routing import Route

from dsv4.encoding import Tokenizer
from dsv4.server import Settings, create_app
from dsv4.server.openapi import OPERATIONS, Operation, openapi_document
from dsv4.testing.stub import StubGenerator
from tests.server.conftest import Converse

FEW, MANY = 10, 400
EVERY = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.path)


@pytest.fixture(scope="module")
def described(tokenizer: Tokenizer) -> Any:
    text = (
        'why</think>Yes.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
    )
    script = [*tokenizer.encode_text(text, trusted=True), tokenizer.eos_id]
    app = create_app(StubGenerator(script), tokenizer, model_name="tiny", settings=Settings(local_only=False))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def send(described: Any, operation: Operation, examples: int) -> None:
    """Requests made from the description of one route."""

    @given(case=described[operation.path][operation.method].as_strategy())
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def run(case: Any) -> None:
        response = case.call()
        assert response.status_code < 500, (case.body, response.text)

    run()


@EVERY
def test_few_requests_give_no_server_error(described: Any, operation: Operation) -> None:
    send(described, operation, FEW)


@pytest.mark.slow
@EVERY
def test_many_requests_give_no_server_error(described: Any, operation: Operation) -> None:
    send(described, operation, MANY)


def test_every_route_is_described(serve: Converse) -> None:
    served = {route.path for route in serve().app.routes if isinstance(route, Route) and route.path.startswith("/v1/")}
    described = {re.sub(r"\{.*\}", "{}", operation.path) for operation in OPERATIONS}
    unknown = {re.sub(r"\{.*\}", "{}", path) for path in served} - described
    assert unknown == {"/v1/embeddings", "/v1/openapi.json"}


def test_document_is_served_and_complete(serve: Converse) -> None:
    document = serve().request("GET", "/openapi.json").json()
    assert document == openapi_document(document["info"]["version"])
    text = str(document)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"]
    chat = document["components"]["schemas"]["ChatRequest"]
    assert "messages" in chat["required"]
    assert chat["properties"]["temperature"]["anyOf"][0]["type"] == "number"
