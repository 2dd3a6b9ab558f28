"""What a server is: its kind, its model, its limits, and whether its tokenizer is ours."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import msgspec

from dsv4.backends.generator import RemoteGenerator
from dsv4.backends.http import HttpClient, ServerLostError
from dsv4.backends.protocol import ServerProtocol
from dsv4.backends.replica import Replica
from dsv4.backends.sglang import Sglang
from dsv4.backends.vllm import Vllm

Kind = Literal["vllm", "sglang"]
KINDS: tuple[Kind, ...] = ("vllm", "sglang")
SURVEY_SECONDS = 20.0
TRIAL_SECONDS = 10.0
# of a grammar that the server does not take: refused, or failed while it was compiled
NO_GRAMMAR = (400, 422, 500)
# texts whose ids tell tokenizers of different models apart
PROBES = ("Hello, world! 1234567\n\n  x", "\u00e9\u4f60\u597d \U0001f600", "def f(x):\n    return x ** 2")
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answered. version: "" where it does not tell. compared: whether its tokenizer is known to be ours;
    servers without `/tokenize` do not tell."""

    url: str
    kind: Kind
    model: str
    context_length: int
    version: str
    protocol: ServerProtocol
    compared: bool


async def survey(url: str, key: str | None, kind: Kind | None, encode: Encode) -> Server:
    """Ask a server what it is. kind: as the user says, None = as it says itself. encode: our tokenizer.

    Raises ServerLostError if it does not answer, ValueError for what cannot be used.
    """
    client = HttpClient(url, key, SURVEY_SECONDS, keep=False)
    found = await _json(client, "/v1/models")
    try:
        first = found["data"][0]
        model, owner, context = str(first["id"]), str(first.get("owned_by", "")), first.get("max_model_len")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ValueError(f"--engine {url}: /v1/models lists no model") from None
    kind = kind or next((known for known in KINDS if owner == known), None)
    if kind is None:
        raise ValueError(f"--engine {url}: it is neither vLLM nor SGLang (it says {owner!r}): name it by --engine-kind")
    if not isinstance(context, int) or context < 2:
        raise ValueError(f"--engine {url}: /v1/models does not tell max_model_len")
    compared = await _compare_tokenizers(client, model, encode)
    if kind == "vllm":
        version = _object(await _json(client, "/version", default={})).get("version", "")
        protocol = Vllm(model, lark=await _follows_lark(HttpClient(url, key, TRIAL_SECONDS, keep=False), Vllm(model)))
        return Server(url, kind, model, context, str(version), protocol, compared)
    info = await _json(client, "/server_info", default=None) or await _json(client, "/get_server_info", default={})
    info = _object(info)
    protocol = Sglang(
        seeds=bool(info.get("enable_deterministic_inference")),
        priorities=bool(info.get("enable_priority_scheduling")),
        grammars=str(info.get("grammar_backend") or "xgrammar"),
    )
    return Server(url, kind, model, context, str(info.get("version", "")), protocol, compared)


def connect(
    urls: Sequence[str],
    encode: Encode,
    *,
    key: str | None = None,
    kind: Kind | None = None,
    silence: float = 900.0,
    context_length: int | None = None,
    end_ids: Sequence[int] = (),
) -> tuple[RemoteGenerator, list[str]]:
    """A generator over these servers, and a line for the user on each. Servers that do not answer are looked at again;
    one that comes late, or comes back, is used if it serves the same model with the same tokenizer and a context that
    is long enough. context_length: at most so much.

    Raises ValueError for what cannot be used, ConnectionError if none answers. Call it outside an event loop.
    """

    async def all_of_them() -> list[Server | BaseException]:
        return await asyncio.gather(*(survey(url, key, kind, encode) for url in urls), return_exceptions=True)

    results = asyncio.run(all_of_them())
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, ServerLostError):
            raise result
    servers = [result for result in results if isinstance(result, Server)]
    if not servers:
        raise ConnectionError(f"--engine: no server answers: {'; '.join(map(str, results))}")
    if len({server.model for server in servers}) > 1:
        names = ", ".join(f"{server.url} serves {server.model}" for server in servers)
        raise ValueError(f"--engine: all servers must serve the same model: {names}")
    context = min(server.context_length for server in servers)
    if context_length is not None and context_length > context:
        raise ValueError(f"--context must be at most {context}, which the engine has, got {context_length}")
    model, least = servers[0].model, context_length or context

    async def again(url: str) -> ServerProtocol:
        found = await survey(url, key, kind, encode)
        if found.model != model:
            raise ValueError(f"{url} serves {found.model}, the other engines {model}")
        if found.context_length < least:
            raise ValueError(f"{url} has a context of {found.context_length}, {least} are needed")
        return found.protocol

    replicas = list[Replica]()
    for number, (url, result) in enumerate(zip(urls, results, strict=True)):
        # it is asked before it is used, so its own protocol takes this one's place
        protocol = result.protocol if isinstance(result, Server) else servers[0].protocol
        replicas.append(Replica(number, HttpClient(url, key, silence), protocol, partial(again, url)))
        if isinstance(result, Exception):
            replicas[-1].lost(result)
    lines = [
        f"engine {number + 1}: {_line(url, result)}"
        for number, (url, result) in enumerate(zip(urls, results, strict=True))
    ]
    return RemoteGenerator(replicas, context_length or context, end_ids), lines


async def _follows_lark(client: HttpClient, protocol: Vllm) -> bool:
    """Whether the server's grammar engine is llguidance; also True for a server that is too busy to tell: its answers
    are checked token by token."""
    try:
        async with client.request("POST", protocol.path, protocol.trial()) as response:
            await response.body()
            return response.status not in NO_GRAMMAR
    except ServerLostError:
        return True


def _line(url: str, result: Server | BaseException) -> str:
    if isinstance(result, Server):
        unknown = "" if result.compared else "; it has no /tokenize: whether its tokenizer is the folder's is not known"
        if isinstance(result.protocol, Vllm) and not result.protocol.lark:
            unknown += "; without --structured-outputs-config.backend guidance it has no grammars for tool calls"
        return f"{result.kind} {result.version} at {url}, {result.model}, context {result.context_length}{unknown}"
    return f"no answer yet ({result})"


async def _json(client: HttpClient, path: str, **default: Any) -> Any:
    """The JSON of a route. default: for a route that is not there; without it that is an error."""
    status, body = await client.get(path)
    if status != 200:
        if default:
            return default["default"]
        hint = ": set DSV4_ENGINE_KEY to its key" if status in (401, 403) else ""
        raise ValueError(f"--engine {client.url}: {path} answers {status}{hint}")
    try:
        return msgspec.json.decode(body)
    except msgspec.MsgspecError:
        raise ValueError(f"--engine {client.url}: {path} answers no JSON") from None


def _object(value: Any) -> dict[str, Any]:
    """What a route told, {} where it is no JSON object."""
    return value if isinstance(value, dict) else {}


async def _compare_tokenizers(client: HttpClient, model: str, encode: Encode) -> bool:
    """Whether the server turns texts into the ids that we do; False if it has no such route. Raises ValueError for
    other ids."""
    for text in PROBES:
        body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
        async with client.request("POST", "/tokenize", body) as response:
            told = await response.body()
            if response.status != 200:
                return False
        try:
            theirs = msgspec.json.decode(told)["tokens"]
        except (msgspec.MsgspecError, TypeError, KeyError):
            return False
        if theirs != list(encode(text)):
            raise ValueError(
                f"--engine {client.url}: its tokenizer is another one: it turns {text!r} into {theirs!s:.80}, the "
                f"folder's into {list(encode(text))!s:.80}; name the folder of the model that it serves"
            )
    return True
