"""CORS by a list of origins: preflights, answers, errors, and the check of the flag."""

import httpx
import pytest

from dsv4.cli.server_flags import ServerFlags
from dsv4.server import Keys
from dsv4.server.guard.cors import Origins
from tests.server.conftest import Converse, Server

SITE, OTHER = "https://chat.example.org", "https://evil.example.org"
KEYS = Keys.parse(["ann secret-of-ann"])
ALLOW = "access-control-allow-origin"


def preflight(server: Server, origin: str, **headers: str) -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": "PUT", **headers}
    return server.request("OPTIONS", "/v1/chat/completions", headers=asked)


def ask(server: Server, origin: str, key: str = "secret-of-ann") -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    headers = {"origin": origin, "authorization": f"Bearer {key}"}
    return server.request("POST", "/v1/chat/completions", json=body, headers=headers)


@pytest.fixture
def server(serve: Converse) -> Server:
    return serve("Yes.", settings={"origins": Origins.parse([SITE]), "keys": KEYS, "local_only": False})


def test_a_listed_site_may_ask_and_read(server: Server) -> None:
    names = "authorization, content-type, anthropic-version, x-stainless-os"
    answer = preflight(server, SITE, **{"access-control-request-headers": names})
    assert (answer.status_code, answer.headers[ALLOW], answer.headers["vary"]) == (204, SITE, "Origin")
    assert answer.headers["access-control-allow-headers"] == names
    assert {"POST", "PUT", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-private-network" not in answer.headers
    local = preflight(server, SITE, **{"access-control-request-private-network": "true"})
    assert local.headers["access-control-allow-private-network"] == "true"
    answer = ask(server, SITE)
    assert (answer.status_code, answer.headers[ALLOW]) == (200, SITE)
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    wrong = ask(server, SITE, "wrong-key")
    assert (wrong.status_code, wrong.headers[ALLOW]) == (401, SITE)
    assert "access-control-allow-credentials" not in answer.headers


def test_another_site_may_not(server: Server) -> None:
    for answer in (preflight(server, OTHER), ask(server, OTHER), ask(server, "null")):
        assert ALLOW not in answer.headers
        assert answer.headers["vary"] == "Origin"


def test_without_a_list_no_site_may(serve: Converse) -> None:
    server = serve("Yes.")
    assert ALLOW not in preflight(server, "http://localhost:3000").headers
    assert "vary" not in preflight(server, SITE).headers
    assert ask(server, SITE).status_code == 403


def test_a_listed_site_may_use_a_server_of_this_machine(serve: Converse) -> None:
    server = serve("Yes.", settings={"origins": Origins.parse([SITE])})
    assert (ask(server, SITE).status_code, ask(server, OTHER).status_code) == (200, 403)


def test_every_site_only_when_asked_for(serve: Converse) -> None:
    server = serve("Yes.", settings={"origins": Origins.parse(["*"]), "keys": KEYS})
    assert preflight(server, OTHER).headers[ALLOW] == ask(server, OTHER).headers[ALLOW] == "*"
    bad = preflight(server, OTHER, **{"access-control-request-headers": "x\x7f"})
    assert bad.headers["access-control-allow-headers"] == "authorization, content-type, x-api-key"


@pytest.mark.parametrize("text", ["example.org", "https://Example.org", "https://example.org/", "null", "", "https://"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--cors must be an origin such as"):
        ServerFlags(cors=(SITE, text)).settings("127.0.0.1")


def test_flag() -> None:
    origins = ServerFlags(cors=(SITE, "tauri://localhost")).settings("127.0.0.1").origins
    assert (origins.allows(SITE), origins.allows("tauri://localhost"), origins.allows(None)) == (True, True, False)
