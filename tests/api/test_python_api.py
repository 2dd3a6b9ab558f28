"""`dsv4.load` as programs use it: from several threads, with tools, with whatever holds token ids."""

import asyncio
import gc
import json
import os
import pickle
import signal
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsv4
from dsv4.api import loading
from dsv4.api.answers import AnswerStream
from dsv4.api.chat_request import check_messages
from dsv4.api.local_model import LocalModel
from dsv4.encoding import ContentDelta
from dsv4.generation import FinishReason
from tests.conftest import ROOT

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return dsv4.load(context_length=2048, sequences=4)


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number} + 5?"}]


def test_threads_get_what_one_gets(model: LocalModel) -> None:
    def tokens(number: int) -> list[int]:
        options: dict[str, Any] = {"temperature": 0} if number % 2 else {"temperature": 1.5, "seed": number}
        return model.chat(question(number), thinking=False, max_tokens=24, **options).completion.tokens

    alone = [tokens(number) for number in range(10, 18)]
    with ThreadPoolExecutor(6) as pool:  # more than run at once
        assert list(pool.map(tokens, range(10, 18))) == alone


def plain(model: LocalModel, number: int) -> str:
    """The answer to a question that is asked alone."""
    return model.chat(question(number), thinking=False, temperature=0).content


def test_logits_beside_answers(model: LocalModel) -> None:
    ids = model.encode_chat(SUM)
    before = model.logits(ids)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(model.chat, SUM, temperature=0) for _ in range(2)]
        logits = [pool.submit(model.logits, ids) for _ in range(4)]
        assert all(torch.equal(one.result(), before) for one in logits)
        assert {answer.result().content for answer in answers} == {"The answer is 42."}


def test_streams_taken_in_turns_and_left(model: LocalModel) -> None:
    streams = [model.stream(question(n), thinking=False, temperature=0) for n in (11, 12, 13)]
    texts = ["", "", ""]
    open_ = dict(enumerate(streams))
    while open_:
        for i, stream in list(open_.items()):
            delta = next(stream, None)
            if delta is None or (i == 2 and texts[2]):
                stream.close()
                del open_[i]
            elif isinstance(delta, ContentDelta):
                texts[i] += delta.text
    assert texts[:2] == [plain(model, 11), plain(model, 12)]
    assert streams[2].finish is FinishReason.ABORT
    assert plain(model, 13).startswith(texts[2])


def test_from_an_event_loop(model: LocalModel) -> None:
    async def ask() -> list[str]:
        inside = model.chat(question(11), thinking=False, temperature=0).content
        others = await asyncio.gather(
            *(asyncio.to_thread(model.chat, question(n), thinking=False, temperature=0) for n in (12, 13))
        )
        return [inside, *(answer.content for answer in others)]

    assert asyncio.run(ask()) == [plain(model, n) for n in (11, 12, 13)]


def test_a_wrong_caller_harms_no_other(model: LocalModel) -> None:
    def wrong() -> None:
        for _ in range(5):
            with pytest.raises(ValueError, match="the prompt has 2048 tokens, the context holds 2048"):
                model.generate([5] * 2048)
            stream = model.stream(SUM)
            next(stream)
            stream.close()

    with ThreadPoolExecutor(3) as pool:
        trouble = [pool.submit(wrong) for _ in range(2)]
        assert model.chat(SUM, temperature=0).content == "The answer is 42."
        for one in trouble:
            one.result()


def _exhaust(stream: AnswerStream) -> None:
    for _ in stream:
        pass
    time.sleep(30)  # a signal that comes after the last token ends this


def test_ctrl_c_ends_only_the_callers_answer(model: LocalModel) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: [model.chat(SUM, temperature=0).content for _ in range(3)])
        end = model.tokenizer.eos_id
        stream = model.stream(question(11), temperature=0, thinking=False, max_tokens=1000, logit_bias={end: -100})
        next(stream)
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            _exhaust(stream)
        timer.join()
        assert other.result() == ["The answer is 42."] * 3
    assert plain(model, 12)


def test_what_a_step_raises_reaches_those_in_it(model: LocalModel) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of the hook")

    handle = model.model.layers[1].register_forward_hook(broken)
    try:
        with pytest.raises(ZeroDivisionError, match="of the hook"):
            model.logits([5, 6])
    finally:
        handle.remove()
    step = model.engine.runner.run
    model.engine.runner.run = broken  # type: ignore[method-assign]
    try:
        with pytest.raises(ZeroDivisionError, match="of the hook"):
            model.chat(SUM)
    finally:
        model.engine.runner.run = step  # type: ignore[method-assign]
    assert model.chat(SUM, temperature=0).content == "The answer is 42."


def test_a_model_asked_by_its_own_hook_does_not_wait_for_itself(model: LocalModel) -> None:
    depth = []

    def asks(*_: object) -> None:
        depth.append(0)
        if len(depth) == 1:
            model.logits([5])  # fine: the same thread has the model already
            model.chat(SUM)

    handle = model.model.layers[0].register_forward_hook(asks)
    try:
        with pytest.raises(RuntimeError, match="would wait for itself"):
            model.logits([5])
    finally:
        handle.remove()
    assert len(depth) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_other_processes_are_told(model: LocalModel) -> None:
    with pytest.raises(TypeError, match=r"call dsv4\.load in every process"):
        pickle.dumps(model)
    model.chat(SUM, max_tokens=1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            model.chat(SUM)
        except RuntimeError as error:
            code = 7 if "before the process forked" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_model_that_is_let_go_is_freed() -> None:
    own = dsv4.load(context_length=256, sequences=1)
    own.chat(SUM, max_tokens=2)
    engine = weakref.ref(own.engine)
    del own
    deadline = time.monotonic() + 30
    while engine() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert engine() is None


def test_calls_go_round(model: LocalModel) -> None:
    ask = [{"role": "user", "content": "How warm is it in Oslo?"}]
    stream = model.stream(ask, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, thinking=False)
    for _ in stream:
        pass
    answer = stream.answer()
    assert answer == stream.answer()  # the ids too
    (call,) = answer.tool_calls
    assert call["function"]["name"] == "get_weather"
    assert call["function"]["arguments"] in ('{"city": "Oslo"}', '{"city": "Rome"}')
    assert answer.message["tool_calls"] == [call]
    by_hand = {"role": "assistant", "content": "", "tool_calls": answer.tool_calls}
    assert check_messages([*ask, by_hand])[-1]["tool_calls"] == [call]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "4 C"}
    prompt = model.encode_chat([*ask, answer.message, result], False, tools=[WEATHER])
    text = model.tokenizer.decode(prompt)
    assert "<tool_result>4 C</tool_result>" in text
    assert text.count("get_weather") == 2  # the schema and the call
    assert model.chat(ask, tools=[WEATHER], tool_choice="none", max_tokens=1, thinking=False).tool_calls == ()


def test_a_constraint_of_the_caller_takes_the_place_of_the_guard(model: LocalModel) -> None:
    ask = [{"role": "user", "content": "How warm is it in Oslo?"}]
    only = model.grammars.regex("yes|no")
    answer = model.chat(ask, tools=[WEATHER], constraint=only, thinking=False)
    assert answer.content in ("yes", "no")
    with pytest.raises(ValueError, match="constraint: not together"):
        model.chat(ask, tools=[WEATHER], tool_choice="required", constraint=only)


def test_the_same_prompt_as_the_server(model: LocalModel) -> None:
    from dsv4.server.dialects.chat.read import read_chat
    from dsv4.server.dialects.chat.request import parse_chat
    from dsv4.server.dialects.prompt import encode

    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}}
    body = {"messages": SUM, "tools": [WEATHER], "reasoning_effort": "max", "response_format": format_}
    theirs = encode(read_chat(parse_chat(body), model.tokenizer.dialect, "", ""), model.tokenizer)
    ours = model.encode_chat(SUM, tools=[WEATHER], reasoning_effort="max", response_format=format_)
    assert ours == theirs


def test_effort_and_json(model: LocalModel) -> None:
    plain = model.chat(SUM, effort="none", temperature=0)
    assert plain.content.startswith("The answer is ")
    assert not plain.reasoning
    cut = model.chat(SUM, thinking_budget=3, temperature=0, max_tokens=30)
    assert len(model.tokenizer.encode_text(cut.reasoning)) <= 3
    schema = {"type": "object", "properties": {"n": {"enum": [42]}}, "required": ["n"], "additionalProperties": False}
    made = model.chat(SUM, thinking=False, response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert json.loads(made.content) == {"n": 42}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking": "yes"}, "thinking: expected True or False, got 'yes'"),
        ({"effort": "huge"}, "effort: expected 'none', .* got 'huge'"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\].function: required, but missing"),
        ({"tool_choice": "required"}, "tool_choice: a call is required, but there are no tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type: expected 'text', .* got 'xml'"),
        ({"thinking_budget": -1}, "thinking_budget: must be greater than or equal to 0, got -1"),
        ({"stop": 5}, "stop: expected a string or a list of strings, none of them empty, got 5"),
        ({"temperature": float("nan")}, r"temperature must be in \[0, 2\], got nan"),
        ({"top_q": 1}, "unknown option 'top_q'"),
    ],
)
def test_wrong_options_are_named(model: LocalModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.chat(SUM, **options)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages: expected a list of message dicts, got str"),
        ([], "messages: at least one is needed"),
        (["hi"], r"messages\[0\]: expected a dict, got str"),
        ([{"role": "user"}], r"messages\[0\].content: required for role user"),
        ([{"role": "wizard", "content": "x"}], r"messages\[0\].role: expected 'system', .* got 'wizard'"),
        ([{"role": "system", "content": "", "tools": [WEATHER]}], r"messages\[0\].tools: give it beside the messages"),
    ],
)
def test_wrong_messages_are_named(model: LocalModel, messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.chat(messages)


def test_token_ids_in_any_form(model: LocalModel) -> None:
    expected = model.logits([0, 5, 9])
    for ids in ((0, 5, 9), torch.tensor([0, 5, 9]), np.array([0, 5, 9]), [np.int64(0), 5, torch.tensor(9)]):
        assert torch.equal(model.logits(ids), expected)
    assert torch.equal(model.mtp_logits(torch.tensor([0, 5, 9], dtype=torch.int32)), model.mtp_logits([0, 5, 9]))
    assert model.generate(torch.tensor([0, 5, 9]), max_tokens=4, seed=1) == model.generate(
        [0, 5, 9], max_tokens=4, seed=1
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.long), r"one row of token ids, got a tensor of shape \(2, 3\)"),
        (torch.tensor(3), r"one row of token ids, got a tensor of shape \(\)"),
        (torch.tensor([0.5]), "expected integers, got a tensor of float32"),
        (np.array([True]), "expected integers, got an array of bool"),
        ("text", "expected token ids, got a str"),
        ([1, 2.0], r"token_ids\[1\]: expected an integer, got 2.0"),
        ([True], r"token_ids\[0\]: expected an integer, got True"),
        (7, "expected a sequence of token ids, got int"),
        ([], "empty"),
        ([10**9], r"must be in \[0, 3072\), got 1000000000"),
    ],
)
def test_wrong_token_ids_are_named(model: LocalModel, ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.logits(ids)


@pytest.mark.parametrize("options", [{"draft": "head"}, {"draft": "both"}, {"speculate": True}])
def test_a_head_that_the_folder_lacks_is_told_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    nano = ROOT / "models" / "nano"
    for file in nano.iterdir():
        if file.is_file() and file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((nano / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}), encoding="utf-8")
    monkeypatch.setattr(loading, "plan_folder", lambda *given: pytest.fail("too late"))
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ValueError, match=r"^draft must be auto, none or ngram for this folder"),
    ):
        dsv4.load(tmp_path, **options)


def test_what_is_printed_tells_what_it_is(model: LocalModel) -> None:
    assert repr(model).startswith(
        "LocalModel('nano', 11.0M parameters, mode release, context 2,048 tokens, cache up to "
    )
    stream = model.stream(SUM, temperature=0)
    next(stream)
    assert repr(stream) == "AnswerStream(not ended, 14 + 1 tokens, content='')"
    for _ in stream:
        pass
    shown = repr(stream.answer())
    assert shown.startswith("Answer(content='The answer is 42.', reasoning='17+25:")
    assert shown.endswith("finish='stop', prompt_tokens=14, completion_tokens=35)")
    completion = stream.answer().completion
    assert repr(completion).startswith("Completion(35 tokens [")
    assert len(repr(completion)) < 120
