"""Constraints in parts: thinking budgets, grammars after a token, banned tokens, and engines that keep to none."""

import json
from typing import Any

import httpx
import pytest

from dsv4.backends.stages import stages_of
from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammars
from dsv4.engine import EngineService
from dsv4.generation import ConstraintStage, FinishReason, SamplingParams, TokenEvent
from dsv4.server import Settings, create_app
from dsv4.server.dialects.constraints import AfterThinking, ThinkingBudget, WithoutCalls
from dsv4.testing.stub import StubGenerator
from tests.backends.conftest import KINDS, Kind, Site, ask, run, told
from tests.server.rambling import Rambling

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}}
LLGUIDANCE = {"enable_deterministic_inference": True, "grammar_backend": "llguidance"}


def greedy(tokenizer: Tokenizer, constraint: Any, **more: Any) -> SamplingParams:
    fields = {"max_tokens": 60, "temperature": 0, "stop_ids": (tokenizer.eos_id,), **more}
    return SamplingParams(constraint=constraint, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_constrained_answers_are_those_of_the_engine(site: Site, service: EngineService, kind: Kind) -> None:
    tokenizer, grammars = site.tokenizer, Grammars(site.tokenizer)
    dsml = tokenizer.token_id(tokenizer.dialect.dsml)
    close = tokenizer.token_id(tokenizer.dialect.think_close)
    schema, calls = grammars.json_schema(SCHEMA), grammars.tool_calls([FUNCTION])
    remote = site.remote(site.server(kind, service, info=LLGUIDANCE))
    for constraint, least in (
        (schema, 1),
        (calls, 1),
        (grammars.json_schema_or_calls(SCHEMA, [FUNCTION]), 1),
        (ThinkingBudget(None, tokenizer, 7), 2),
        (ThinkingBudget(None, tokenizer, 0), 1),
        (ThinkingBudget(AfterThinking(schema, tokenizer), tokenizer, 7), 2),
        (ThinkingBudget(AfterThinking(calls, tokenizer), tokenizer, 5), 2),
        (ThinkingBudget(WithoutCalls(tokenizer), tokenizer, 5), 2),
    ):
        params = greedy(tokenizer, constraint)
        expected = run(lambda params=params: told(service, params, [0, 50, 51]))
        got = ask(remote, params, prompt=[0, 50, 51])
        assert [(e.token, e.finish) for e in got] == [(e.token, e.finish) for e in expected]
        assert len(stages_of(constraint)) >= least
        if isinstance(constraint, ThinkingBudget):
            assert got[constraint.tokens].token == close
        assert dsml not in [e.token for e in got] or constraint not in (schema,)


@pytest.mark.parametrize("limit", [3, 5, 6, 7])
def test_limits_inside_and_at_the_border_of_parts(site: Site, service: EngineService, limit: int) -> None:
    tokenizer = site.tokenizer
    remote = site.remote(site.server("vllm", service))
    params = greedy(tokenizer, ThinkingBudget(None, tokenizer, 5), max_tokens=limit)
    expected = run(lambda: told(service, params, [0, 50]))
    assert [(e.token, e.finish) for e in ask(remote, params, prompt=[0, 50])] == [(e.token, e.finish) for e in expected]
    assert len(expected) == limit


@pytest.mark.parametrize("kind", KINDS)
def test_a_grammar_after_a_token_is_a_request_of_its_own(site: Site, kind: Kind) -> None:
    tokenizer = site.tokenizer
    dsml = tokenizer.token_id(tokenizer.dialect.dsml)
    calls = Grammars(tokenizer).tool_calls([FUNCTION], opened=True).after(dsml)
    block = tokenizer.encode_text(
        'tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">1</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        trusted=True,
    )
    whole = [0, 50, 60, 61, dsml, *block, tokenizer.eos_id]
    stub = StubGenerator(lambda prompt, params: whole[len(prompt) :], reused=4)
    server = site.server(kind, stub, info=LLGUIDANCE)
    remote = site.remote(server)
    events = ask(remote, SamplingParams(constraint=calls, stop_ids=(tokenizer.eos_id,)), prompt=[0, 50])
    assert [event.token for event in events] == whole[2:]
    assert [event.finish for event in events if event.finish] == [FinishReason.STOP]
    assert [event.reused for event in events if event.reused is not None] == [4]
    assert [len(call.prompt) for call in stub.calls] == [2, 5]
    sent = [body.get("structured_outputs") or body.get("sampling_params", {}).get("ebnf") for body in server.asked]
    assert sent[0] is None
    assert "invoke" in json.dumps(sent[1])
    # vLLM's `auto` must not take xgrammar, whose Lark is another one
    assert kind == "sglang" or sent[1]["grammar"].startswith("%llguidance {}\n")


def test_an_engine_that_does_not_follow_a_grammar_is_noticed(site: Site) -> None:
    tokenizer = site.tokenizer
    remote = site.remote(site.server("vllm", StubGenerator([60, 61, 62])))
    calls = Grammars(tokenizer).tool_calls([FUNCTION])
    for constraint, sentence in (
        (calls, "does not follow the grammar"),
        (WithoutCalls(tokenizer), None),
    ):
        events = ask(remote, greedy(tokenizer, constraint))
        assert (events[-1].error is not None) == (sentence is not None)
        assert sentence is None or sentence in (events[-1].error or "")
    dsml = tokenizer.token_id(tokenizer.dialect.dsml)
    remote = site.remote(site.server("vllm", StubGenerator([60, dsml])))
    events: list[TokenEvent] = ask(remote, greedy(tokenizer, WithoutCalls(tokenizer)))
    assert "cannot hold" in (events[-1].error or "")


def test_an_engine_that_ends_an_answer_too_early_is_noticed(site: Site) -> None:
    """The stub's script is over: it says `stop` without an end token."""
    tokenizer = site.tokenizer
    calls = Grammars(tokenizer).tool_calls([FUNCTION])
    begun = tokenizer.encode_text(f"\n\n{tokenizer.dialect.calls_open}>\n", trusted=True)
    for script, constraint in (
        (begun, calls),
        ([60, 61], AfterThinking(calls, tokenizer)),
        ([60, 61, tokenizer.token_id(tokenizer.dialect.think_close), *begun], AfterThinking(calls, tokenizer)),
    ):
        stub = StubGenerator(lambda prompt, params, script=script: script[len(prompt) - 2 :])
        events = ask(site.remote(site.server("vllm", stub)), greedy(tokenizer, constraint), prompt=[0, 50])
        assert [event.token for event in events] == [*script, None]
        assert events[-1].finish is FinishReason.ERROR
        assert "ended the answer before it was complete" in (events[-1].error or "")
    stub = StubGenerator([60, 61])
    events = ask(site.remote(site.server("vllm", stub)), greedy(tokenizer, WithoutCalls(tokenizer)))
    assert events[-1].finish is FinishReason.STOP


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [None, 12])
@pytest.mark.parametrize("ends", [False, True])
def test_a_required_call_comes_from_a_model_that_says_anything(
    site: Site, kind: Kind, budget: int | None, ends: bool
) -> None:
    """Control tokens that are of no use in the reasoning, too; ends: one of them ends every answer of this model."""
    tokenizer = site.tokenizer
    end_ids = (tokenizer.token_id(tokenizer.dialect.pad), tokenizer.eos_id) if ends else ()
    remote = site.remote(site.server(kind, Rambling(tokenizer), info=LLGUIDANCE), end_ids=end_ids)
    app = create_app(remote, tokenizer, model_name="tiny", settings=Settings())
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "Q"}], "max_tokens": 500, "thinking_budget": budget,
        "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required",
        "parallel_tool_calls": False, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    }  # fmt: skip

    async def all_of_them() -> list[Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.post("/v1/chat/completions", json={**body, "seed": seed}) for seed in range(8)]

    for answer in run(all_of_them, remote):
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) in ({"x": 1}, {"x": 2})


class Exhausted:
    """A grammar over whose answers the grammar engine of this side gives up at the second token."""

    trigger = None
    tokens = 0

    def source(self) -> tuple[str, str]:
        return "lark", "start: /a+/"

    def at_once(self) -> "Exhausted":
        return self

    start = at_once

    def allowed(self) -> bytes | None:
        if self.tokens:
            raise RuntimeError("the grammar of this answer grew too complex: lexer")
        return None

    def accept(self, token: int) -> None:
        self.tokens += 1


def test_a_grammar_that_gives_up_on_this_side_ends_the_answer(site: Site) -> None:
    remote = site.remote(site.server("vllm", StubGenerator([60, 61, 62])))
    events = ask(remote, greedy(site.tokenizer, Exhausted()))
    assert [event.token for event in events] == [60, None]
    assert (events[-1].finish, "grew too complex" in (events[-1].error or "")) == (FinishReason.ERROR, True)


def test_what_cannot_be_asked_of_an_engine(site: Site) -> None:
    tokenizer, grammars = site.tokenizer, Grammars(site.tokenizer)
    plain = site.remote(site.server("sglang", StubGenerator([60]), info={"grammar_backend": "xgrammar"}))
    none = site.remote(site.server("sglang", StubGenerator([60]), info={"grammar_backend": "none"}))
    other = site.server("vllm", StubGenerator([60]))
    other.compile = None  # one that has compiled a JSON schema with xgrammar before it was asked
    for constraint in (grammars.tool_calls([FUNCTION]), AfterThinking(grammars.regex("a+"), tokenizer)):
        with pytest.raises(ValueError, match=r"--structured-outputs-config\.backend guidance"):
            ask(site.remote(other), greedy(tokenizer, constraint))
    assert not other.asked
    with pytest.raises(ValueError, match="--grammar-backend llguidance"):
        ask(plain, greedy(tokenizer, grammars.tool_calls([FUNCTION])))
    with pytest.raises(ValueError, match="no grammars"):
        ask(none, greedy(tokenizer, grammars.json_schema(SCHEMA)))
    with pytest.raises(ValueError, match="constraint: the rest of a text"):
        ask(plain, greedy(tokenizer, grammars.json_schema(SCHEMA).behind('{"n"')))

    class Own:
        def start(self) -> Any: ...

    with pytest.raises(ValueError, match="constraint"):
        ask(plain, greedy(tokenizer, Own()))
    with pytest.raises(ValueError, match="logprobs"):
        ask(plain, greedy(tokenizer, ThinkingBudget(None, tokenizer, 3), logprobs=True))


def test_parts_of_constraints(tokenizer: Tokenizer) -> None:
    schema = Grammars(tokenizer).json_schema(SCHEMA)
    close = tokenizer.token_id(tokenizer.dialect.think_close)
    dsml = tokenizer.token_id(tokenizer.dialect.dsml)
    assert stages_of(None) == (ConstraintStage(),)
    assert stages_of(WithoutCalls(tokenizer)) == (ConstraintStage(banned=(dsml,)),)
    first, second = stages_of(ThinkingBudget(AfterThinking(schema, tokenizer), tokenizer, 9))
    ends = {
        tokenizer.eos_id,
        *(tokenizer.token_id(role) for role in (tokenizer.dialect.user, tokenizer.dialect.assistant)),
    }
    assert (first.until, first.most) == (close, 9)
    assert {dsml, *ends} <= {*first.banned}
    assert close not in first.banned
    assert second == ConstraintStage(grammar=schema)
    others = stages_of(AfterThinking(schema, tokenizer), (tokenizer.eos_id,), (77, tokenizer.eos_id))
    assert [77 in stage.banned for stage in others] == [True, False]
    assert stages_of(WithoutCalls(tokenizer), (tokenizer.eos_id,), (77,)) == (ConstraintStage(banned=(dsml,)),)
    assert stages_of(schema.after(dsml))[0] == ConstraintStage(dsml)
