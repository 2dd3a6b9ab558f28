"""The OpenAPI description of the server at `/openapi.json`, made from the models that check the requests.

It lists each route once, under `/v1`. docs/api.md describes the fields.
"""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dsv4.server.dialects.chat.request import ChatRequest
from dsv4.server.dialects.completions import CompletionRequest
from dsv4.server.dialects.messages.request import MessagesRequest
from dsv4.server.dialects.responses.request import ResponsesRequest

TEXT_OR_PARTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]}
# fields that accept more forms than the type of their model shows
FORMS: dict[str, dict[str, Any]] = {
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 16}]},
    "stop_sequences": {"type": "array", "items": {"type": "string"}, "maxItems": 16},
    "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    "content": TEXT_OR_PARTS,
    "system": TEXT_OR_PARTS,
    "arguments": {"type": "string", "description": "The text of a JSON object."},
}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}
TOKENS: dict[str, Any] = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}, "messages": {"type": "array", "items": {"type": "object"}}},
}
RENDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "api": {"enum": ["chat", "messages", "responses"]},
        "body": {"type": "object"},
        "tokens": {"type": "boolean"},
    },
    "required": ["api", "body"],
}
CONVERSATION: dict[str, Any] = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 512}},
    "required": ["title"],
}
IDS: dict[str, Any] = {
    "type": "object",
    "properties": {"tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    "required": ["tokens"],
}
INSPECT: dict[str, Any] = {
    "type": "object",
    "properties": {**TOKENS["properties"], "max_tokens": {"type": "integer", "minimum": 1, "maximum": 128}},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. body: the model or schema of its request; streams: `stream: true` gives server-sent events."""

    method: str
    path: str
    summary: str
    body: type[BaseModel] | dict[str, Any] | None = None
    streams: bool = False


OPERATIONS = (
    Operation("post", "/v1/chat/completions", "Answer a conversation (OpenAI)", ChatRequest, streams=True),
    Operation("post", "/v1/completions", "Continue a text, or fill a gap (OpenAI)", CompletionRequest, streams=True),
    Operation("post", "/v1/responses", "Answer input items (OpenAI Responses)", ResponsesRequest, streams=True),
    Operation("post", "/v1/responses/input_tokens", "Count the prompt of a response", ResponsesRequest),
    Operation("get", "/v1/responses/{id}", "A stored response"),
    Operation("delete", "/v1/responses/{id}", "Forget a stored response"),
    Operation("post", "/v1/responses/{id}/cancel", "Refused: no response runs in the background"),
    Operation("get", "/v1/responses/{id}/input_items", "The items that a stored response was made from"),
    Operation("post", "/v1/messages", "Answer a conversation (Anthropic)", MessagesRequest, streams=True),
    Operation("post", "/v1/messages/count_tokens", "Count the prompt of a message", MessagesRequest),
    Operation("post", "/v1/tokenize", "Token ids of a text or a conversation", TOKENS),
    Operation("post", "/v1/detokenize", "Text of token ids", IDS),
    Operation("post", "/v1/render", "The prompt that a request becomes", RENDER),
    Operation("get", "/v1/models", "The served model and its other names"),
    Operation("get", "/v1/models/{model_id}", "One model"),
    Operation("get", "/v1/health", "Whether the server runs"),
    Operation("get", "/v1/ready", "Whether it takes requests"),
    Operation("get", "/v1/version", "Its version"),
    Operation("get", "/v1/props", "What the loaded model and this server can do"),
    Operation("get", "/v1/metrics", "Numbers for Prometheus"),
    Operation("get", "/v1/history", "The conversations of the chat page"),
    Operation("get", "/v1/history/{id}", "One conversation"),
    Operation("put", "/v1/history/{id}", "Keep a conversation", CONVERSATION),
    Operation("delete", "/v1/history/{id}", "Forget a conversation"),
    Operation("get", "/v1/admin/engine", "The state of the engine"),
    Operation("post", "/v1/admin/engine/cancel/{id}", "End one running answer"),
    Operation("get", "/v1/admin/usage", "Tokens and costs from the ledger"),
    Operation("get", "/v1/admin/runs", "Training runs in the folder of runs"),
    Operation("get", "/v1/admin/runs/{run}", "New lines of the log of a run"),
    Operation("get", "/v1/admin/model", "The architecture of the model"),
    Operation("post", "/v1/admin/inspect", "What the model chose inside for one prompt", INSPECT),
    Operation("get", "/v1/user/balance", "A stub of the official service's"),
)


def openapi_document(version: str) -> dict[str, Any]:
    """The whole description as a JSON object."""
    models = [o.body for o in OPERATIONS if isinstance(o.body, type)]
    _, found = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template="#/components/schemas/{model}"
    )
    schemas = found["$defs"]
    for model, schema in schemas.items():
        for name, field in schema.get("properties", {}).items():
            form = FORMS.get(f"{model}.{name}", FORMS.get(name))
            if form is not None:
                schema["properties"][name] = {**form, "title": field.get("title", name)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "dsv4", "version": version},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    error = {"description": "what is wrong, by name", "content": _json({"$ref": "#/components/schemas/Error"})}
    content: dict[str, Any] = {"text/plain": {}} if operation.path.endswith("metrics") else _json({"type": "object"})
    if operation.streams:
        content["text/event-stream"] = {}
    fields: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}_{operation.path.strip('/').translate(str.maketrans('/{}', '___'))}",
        "responses": {"200": {"description": "the answer", "content": content}, "4XX": error},
    }
    if operation.body is not None:
        body = operation.body
        schema = body if isinstance(body, dict) else {"$ref": f"#/components/schemas/{body.__name__}"}
        fields["requestBody"] = {"required": True, "content": _json(schema)}
    if names := re.findall(r"{(\w+)}", operation.path):
        text = {"type": "string"}
        fields["parameters"] = [{"name": name, "in": "path", "required": True, "schema": text} for name in names]
    return fields


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
