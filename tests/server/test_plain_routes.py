"""Routes beside the answers, text completions, keys, probes, request ids, limits."""

import json
from typing import Any

import httpx
import openai
import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingDefaults
from dsv4.server import Keys
from dsv4.server.dialects.completions import FIM_TOKENS
from dsv4.server.dialects.request import owner_name
from tests.server.conftest import MODEL, Converse, Server, listening
from tests.server.test_chat import THOUGHT

USER = {"role": "user", "content": "Hi"}
KEYS = Keys.parse(["ann secret-of-ann", "bob secret-of-bob", "eve geheim-für-özgür"])


def get(server: Server, path: str) -> Any:
    response = server.request("GET", path)
    assert response.status_code == 200, response.text
    return response.json()


def test_small_pages(serve: Converse) -> None:
    server = serve("x")
    assert get(server, "/ready")["status"] == "ready"
    assert get(server, "/version")["version"]
    (info,) = get(server, "/user/balance")["balance_infos"]
    assert isinstance(info["total_balance"], str)
    error = server.request("POST", "/v1/embeddings", json={}).json()["error"]
    assert "no embeddings" in error["message"]


def test_stopping(serve: Converse) -> None:
    server = serve("x")
    server.app.state.backend.admission.draining = True
    assert server.request("GET", "/ready").status_code == 503
    assert server.post().status_code == 503
    response = server.request("POST", "/v1/messages", json={"messages": [USER]})
    assert (response.status_code, response.json()["error"]["type"]) == (529, "overloaded_error")


def test_metrics(serve: Converse) -> None:
    server = serve(THOUGHT, reused=3)
    server.app.state.backend.counters = lambda: {"running": 2, "waiting": 5, "pages": 4, "pages_free": 3}
    answers = [server.answer() for _ in range(2)]
    server.post(temperature=9)
    text = server.request("GET", "/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["dsv4_num_requests_running"] == "2"
    assert values["dsv4_num_requests_waiting"] == "5"
    assert values["dsv4_kv_cache_usage_perc"] == "0.25"
    assert values["dsv4_prompt_tokens_total"] == str(2 * answers[0]["usage"]["prompt_tokens"])
    assert values["dsv4_generation_tokens_total"] == str(2 * answers[0]["usage"]["completion_tokens"])
    assert values["dsv4_prefix_cache_hits_total"] == "6"
    assert values['dsv4_request_success_total{finished_reason="stop"}'] == "2"
    assert values['dsv4_http_responses_total{status="400"}'] == "1"
    assert values['dsv4_time_to_first_token_seconds_bucket{le="+Inf"}'] == "2"
    assert values["dsv4_engine_pages"] == "4"
    kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))


def test_tokenize(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(THOUGHT)
    text = "Paris <｜User｜> 💡"
    answer = server.request("POST", "/tokenize", json={"prompt": text}).json()
    assert answer["tokens"] == tokenizer.encode_text(text)
    assert answer["count"] == len(answer["tokens"])
    back = server.request("POST", "/v1/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}
    chat = server.request("POST", "/tokenize", json={"messages": [USER]}).json()
    server.post(messages=[USER])
    assert chat["tokens"] == server.generator.calls[0].prompt
    for path, body in (("/tokenize", {}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", []), ("/tokenize", 3)):
        assert server.request("POST", path, json=body).status_code == 400


@pytest.mark.parametrize("path", ["/completions", "/v1/completions", "/beta/completions"])
def test_completion(serve: Converse, tokenizer: Tokenizer, path: str) -> None:
    server = serve("is a city.")
    answer = server.request("POST", path, json={"prompt": "Paris ", "logprobs": 2}).json()
    (choice,) = answer["choices"]
    assert (answer["object"], choice["text"], choice["finish_reason"]) == ("text_completion", "is a city.", "stop")
    assert "".join(choice["logprobs"]["tokens"]) == "is a city."
    assert server.generator.calls[0].prompt == [tokenizer.bos_id, *tokenizer.encode_text("Paris ")]
    echoed = server.request("POST", path, json={"prompt": "Paris ", "echo": True, "stop": "city"}).json()
    assert echoed["choices"][0]["text"] == "Paris is a "


def test_completion_by_sdk(serve: Converse) -> None:
    async def use(client: openai.AsyncOpenAI) -> tuple[Any, list[Any]]:
        whole = await client.completions.create(model=MODEL, prompt="Paris ")
        stream = await client.completions.create(model=MODEL, prompt="Paris ", stream=True)
        return whole, [chunk async for chunk in stream]

    whole, chunks = serve("is a city.").sdk(use)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text == "is a city."
    assert chunks[-1].usage == whole.usage


def test_a_gap_is_filled(serve: Converse, tokenizer: Tokenizer) -> None:
    body = {"prompt": "a", "suffix": "b"}
    error = serve("x").request("POST", "/beta/completions", json=body).json()["error"]
    assert error["param"] == "suffix"
    definition = json.loads(tokenizer.definition_json())
    first = tokenizer.vocab_size
    added = [{**definition["added_tokens"][0], "id": first + i, "content": text} for i, text in enumerate(FIM_TOKENS)]
    definition["added_tokens"] += added
    server = serve("x")
    server = Server(Tokenizer(definition), server.generator)
    assert server.request("POST", "/beta/completions", json=body).json()["choices"][0]["text"] == "x"
    a, b = tokenizer.encode_text("a"), tokenizer.encode_text("b")
    assert server.generator.calls[0].prompt == [tokenizer.bos_id, first, *a, first + 1, *b, first + 2]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt[1]"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "a", "echo": True, "suffix": "b"}, "echo"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "n": 129}, "n"),
        ({"prompt": "a", "stream_options": {}}, "stream_options"),
    ],
)
def test_wrong_completions(serve: Converse, fields: dict[str, Any], param: str) -> None:
    response = serve("x").request("POST", "/completions", json=fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/", "/api/hello", "/v1/messages", "/v1/models"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_probes(serve: Converse, method: str, path: str) -> None:
    response = serve("x", settings={"keys": KEYS}).request(method, path)
    assert (response.status_code, response.content) == (200, b"")
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong-secret"}, 401),
        ({"authorization": "Bearer secret-of-ann"}, 200),
        ({"x-api-key": "secret-of-bob"}, 200),
        ({"authorization": "BEARER secret-of-ann"}, 200),
        ({"authorization": "secret-of-ann"}, 200),
        ({"authorization": "Basic secret-of-ann"}, 401),
        ({"authorization": b"Bearer geheim-f\xc3\xbcr-\xc3\xb6zg\xc3\xbcr"}, 200),
        ({"authorization": "Bearer geheim-für-özgür".encode("latin-1")}, 200),
        ({"authorization": "Bearer wrong-secret", "x-api-key": "secret-of-bob"}, 401),
    ],
)
def test_keys(serve: Converse, capsys: pytest.CaptureFixture[str], headers: dict[str, Any], status: int) -> None:
    server = serve("x", settings={"keys": KEYS})
    response = server.request("POST", "/v1/chat/completions", json={"messages": [USER]}, headers=headers)
    assert response.status_code == status
    if status == 401:
        error = response.json()["error"]
        assert error["type"] == "authentication_error"
        assert error["message"].startswith("Authentication Fails, Your api key: ****")
        assert "wrong-secret" not in response.text
    else:
        assert server.generator.calls[0].options.owner in map(owner_name, ("ann", "bob", "eve"))
    assert "secret" not in capsys.readouterr().err
    assert server.request("GET", "/health").status_code == 200
    assert server.request("GET", "/metrics").status_code == 401


def test_wrong_key_in_anthropics_shape(serve: Converse) -> None:
    response = serve("x", settings={"keys": KEYS}).request("POST", "/v1/messages", json={})
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")


def test_other_machines_are_served_if_wanted(serve: Converse) -> None:
    server = serve("x", settings={"local_only": False})
    assert server.request("GET", "/health", headers={"host": "example.org"}).status_code == 200


@pytest.mark.parametrize(("sent", "kept"), [("abc-1", True), ("x" * 200, False), ("a b", False)])
def test_request_ids(serve: Converse, capsys: pytest.CaptureFixture[str], sent: str, kept: bool) -> None:
    response = serve("x").request("GET", "/health", headers={"x-request-id": sent})
    found = response.headers["x-request-id"]
    assert (found == sent) is kept
    assert json.loads(capsys.readouterr().err)["request_id"] == found == response.headers["request-id"]


def test_a_client_that_stops_sending_is_let_go(serve: Converse) -> None:
    server = serve("x", settings={"body_seconds": 0.1})

    def slow() -> Any:
        yield b"{"
        import time

        time.sleep(0.5)
        yield b"}"

    with listening(server) as url:
        assert httpx.post(f"{url}/chat/completions", content=slow()).status_code == 408


def test_props_describe_model_and_server(serve: Converse) -> None:
    backend = (server := serve("x", settings={"keys": KEYS})).app.state.backend
    backend.defaults = SamplingDefaults(temperature=0.5, example_prompts=("What is 17 + 25?",))
    backend.facts = {"mode": "fp32"}
    assert server.request("GET", "/props").status_code == 401
    headers = {"authorization": "Bearer secret-of-ann"}
    props = server.request("GET", "/v1/props", headers=headers).json()
    assert (props["model"], props["mode"], props["chat_template"]) == (MODEL, "fp32", "v4")
    assert props["context_length"] == props["limits"]["output_tokens"] == 4096
    assert (props["sampling"]["temperature"], props["example_prompts"]) == (0.5, ["What is 17 + 25?"])
    assert props["effort"]["supported_levels"] == ["none", "high", "max"]
    assert (props["key_needed"], props["features"]["history"]) == (True, False)
    # a request at a limit is accepted, one beyond it is not
    most = props["limits"]["stop_strings"]
    body = {"messages": [USER], "stop": ["x"] * most}
    assert server.request("POST", "/v1/chat/completions", json=body, headers=headers).status_code == 200
    body["stop"].append("x")
    assert server.request("POST", "/v1/chat/completions", json=body, headers=headers).status_code == 400


def test_a_count_without_the_tokens(serve: Converse) -> None:
    server = serve("x")
    for body in ({"prompt": "six times seven"}, {"messages": [{"role": "user", "content": "six times seven"}]}):
        whole = server.request("POST", "/v1/tokenize", json=body).json()
        count = server.request("POST", "/v1/tokenize", json={**body, "tokens": False}).json()
        assert count == {"count": len(whole["tokens"]), "max_model_len": whole["max_model_len"]}
