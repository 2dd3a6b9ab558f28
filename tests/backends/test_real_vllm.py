"""`dsv4 serve --engine` in front of two servers of vLLM itself, by the SDKs; skipped where vLLM is missing.

Their model is random (`real_vllm.py`), so only the form of answers, counts and failures are known beforehand.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx
import openai
import pytest

from dsv4.encoding import Tokenizer, train_bpe
from dsv4.verify.own_server import own_server
from tests.backends.real_vllm import CONTEXT, VARIABLE, RealVllm, real_vllm, vllm_python, write_llama
from tests.server.conftest import CORPUS, TRIP

pytestmark = pytest.mark.slow

USER: Any = [{"role": "user", "content": "Hi"}]
OFF = {"thinking": {"type": "disabled"}}
NO_END = {str(token): -100 for token in range(40)}  # no control token: the answer goes on until its limit


@dataclass(frozen=True, slots=True)
class Front:
    """Our server and those behind it."""

    url: str
    engines: tuple[RealVllm, RealVllm]
    tokenizer: Tokenizer

    @property
    def sdk(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=300)

    def chat(self, **fields: Any) -> Any:
        fields = {"messages": USER, "temperature": 0, "extra_body": OFF, "max_tokens": 20, **fields}
        return self.sdk.chat.completions.create(model="model", **fields)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"dsv4_engine_{name} "))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    python = vllm_python()
    if python is None:
        pytest.skip(f"no vLLM here: {VARIABLE} may name an interpreter that has it")
    place = tmp_path_factory.mktemp("vllm")
    folder = place / "model"
    tokenizer = train_bpe([CORPUS], 420, folder)
    write_llama(folder, tokenizer.vocab_size)
    only_tokenizer = place / "tokenizer"
    only_tokenizer.mkdir()
    (only_tokenizer / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with ExitStack() as stack:
        first = stack.enter_context(real_vllm(python, folder, place / "first.log"))
        second = stack.enter_context(real_vllm(python, folder, place / "second.log"))
        first.wait()
        second.wait()
        flags = ["--engine", first.url, "--engine", second.url, "--any-model", "--history", str(place / "history")]
        yield Front(stack.enter_context(own_server(only_tokenizer, flags)), (first, second), tokenizer)


def test_tokens_and_log_probabilities_are_those_of_vllm(front: Front) -> None:
    prompt = [0, *front.tokenizer.encode_text("Once")]
    body = {
        "model": "random-llama", "prompt": prompt, "max_tokens": 12, "temperature": 0,
        "logprobs": 2, "return_token_ids": True, "return_tokens_as_token_ids": True, "logit_bias": NO_END,
    }  # fmt: skip
    bare = httpx.post(f"{front.engines[0].url}/v1/completions", json=body, timeout=300).json()["choices"][0]
    told = front.sdk.completions.create(
        model="m", prompt=prompt, max_tokens=12, temperature=0, logprobs=2, logit_bias=NO_END,
        extra_body={"return_token_ids": True},
    ).choices[0]  # fmt: skip
    assert told.model_extra is not None
    assert told.model_extra["token_ids"] == bare["token_ids"]
    assert told.finish_reason == bare["finish_reason"] == "length"
    assert told.logprobs is not None
    assert told.logprobs.token_logprobs == pytest.approx(bare["logprobs"]["token_logprobs"], abs=1e-4)


def test_openai_chat_whole_and_streamed(front: Front) -> None:
    whole = front.chat(logit_bias=NO_END, logprobs=True, top_logprobs=3)
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 20)
    scores = whole.choices[0].logprobs.content
    assert 0 < len(scores) <= 20  # tokens that make up one character are told together
    assert all(len(score.top_logprobs) == 3 and score.logprob <= 0 for score in scores)
    chunks = list(front.chat(logit_bias=NO_END, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 20
    again = front.chat(temperature=1, seed=5), front.chat(temperature=1, seed=5), front.chat(temperature=1, seed=6)
    one, same, other = (answer.choices[0].message.content for answer in again)
    assert one == same != other
    choices = front.chat(n=3, temperature=1, seed=5, logit_bias=NO_END)
    assert len({choice.message.content for choice in choices.choices}) == 3
    assert choices.usage.completion_tokens == 60
    place = next(text[at : at + 2] for at in range(5, len(text)) if text[at : at + 2].isascii())
    stopped = front.chat(logit_bias=NO_END, stop=[place]).choices[0]
    assert (stopped.finish_reason, stopped.message.content) == ("stop", text[: text.index(place)])


def test_prompts_are_found_in_its_cache(front: Front) -> None:
    long: Any = [{"role": "user", "content": "The answer is forty-two. " * 20}]
    first, second = (front.chat(messages=long, max_tokens=2).usage for _ in range(2))
    assert first.prompt_tokens == second.prompt_tokens
    cached = second.prompt_tokens_details.cached_tokens
    assert second.prompt_tokens - 256 <= cached < second.prompt_tokens
    assert first.prompt_tokens_details.cached_tokens < cached
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        front.chat(messages=[{"role": "user", "content": "x y z " * CONTEXT}])


def test_messages_and_responses(front: Front) -> None:
    claude = anthropic.Anthropic(base_url=front.url, api_key="any", max_retries=0, timeout=300)
    message = claude.messages.create(model="m", max_tokens=20, messages=USER)
    assert message.usage.output_tokens <= 20
    with claude.messages.stream(model="m", max_tokens=20, messages=USER) as stream:
        assert stream.get_final_message().stop_reason in ("max_tokens", "end_turn")
    forced = claude.messages.create(
        model="m", max_tokens=600, messages=USER, tool_choice={"type": "tool", "name": "get_weather"},
        tools=[{"name": "get_weather", "input_schema": TRIP}],  # pyrefly: ignore
    )  # fmt: skip
    assert forced.stop_reason == "tool_use"
    assert isinstance(forced.content[-1].input["days"], int)
    response = front.sdk.responses.create(model="m", input="Hi", max_output_tokens=20)
    assert response.usage is not None
    assert response.usage.output_tokens <= 20
    events = [
        event.type for event in front.sdk.responses.create(model="m", input="Hi", stream=True, max_output_tokens=9)
    ]
    assert events[-1] in ("response.completed", "response.incomplete")


def test_sixteen_at_once_go_to_both(front: Front) -> None:
    before = [engine.gauge("vllm:request_success_total") for engine in front.engines]

    async def all_of_them() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="any", max_retries=0, timeout=300) as client:
            asks = (
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": f"Number {number}"}], max_tokens=30,
                    temperature=0, logit_bias=NO_END, extra_body=OFF,
                )
                for number in range(16)
            )  # fmt: skip
            return list(await asyncio.gather(*asks))

    assert [answer.usage.completion_tokens for answer in asyncio.run(all_of_them())] == [30] * 16
    served = [
        engine.gauge("vllm:request_success_total") - old for engine, old in zip(front.engines, before, strict=True)
    ]
    assert sum(served) == 16
    assert min(served) > 0


def test_a_client_that_leaves_ends_the_request_there(front: Front) -> None:
    stream = front.chat(max_tokens=1500, stream=True, logit_bias=NO_END)
    next(iter(stream))
    assert sum(engine.gauge("vllm:num_requests_running") for engine in front.engines) == 1
    stream.close()
    until = time.monotonic() + 20
    while sum(engine.gauge("vllm:num_requests_running") for engine in front.engines):
        assert time.monotonic() < until
        time.sleep(0.1)
    said = sum(engine.gauge("vllm:generation_tokens_total") for engine in front.engines)
    time.sleep(0.5)
    assert sum(engine.gauge("vllm:generation_tokens_total") for engine in front.engines) == said


def test_killed_servers(front: Front) -> None:
    """The last test: it ends both."""
    first, second = front.engines
    streams = [front.chat(max_tokens=1500, stream=True, logit_bias=NO_END, messages=_numbered(n)) for n in range(2)]
    for stream in streams:
        next(iter(stream))
    first.kill()
    ends = []
    for stream in streams:
        try:
            ends.append(list(stream)[-1].choices[0].finish_reason)
        except openai.APIError as error:
            ends.append(str(error))
    assert sorted(end == "length" for end in ends) == [False, True]
    assert any("stopped in the middle of the answer" in end for end in ends)
    # the other one answers everything, also what would have gone to the first
    assert all(front.chat(messages=_numbered(n), max_tokens=4, logit_bias=NO_END).usage for n in range(4))
    assert (front.metric("remote_engines_lost"), front.metric("remote_lost_total")) == (1, 1)
    assert httpx.get(f"{front.url}/ready").status_code == 200
    second.kill()
    with pytest.raises(openai.APIError, match="no engine behind this server answers"):
        front.chat()
    assert httpx.get(f"{front.url}/ready").status_code == 503


def _numbered(number: int) -> Any:
    return [{"role": "user", "content": f"Number {number}"}]
