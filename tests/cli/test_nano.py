"""The bundled model through every public face: Python, the command line, HTTP with the real SDK."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
import uvicorn

import dsv4
from dsv4.api.local_model import LocalModel
from dsv4.cli.folders import default_model_folder
from dsv4.cli.recipe_chain import Chain
from dsv4.cli.serve import open_listener
from dsv4.encoding import ContentDelta, ReasoningDelta
from dsv4.generation import FinishReason
from dsv4.posttraining.deepen import deeper_config
from dsv4.posttraining.verifiers import reward
from dsv4.server import create_app
from dsv4.training.recipe import Recipe
from recipes.nano.grade import table
from recipes.nano.grading.abilities import abilities
from recipes.nano.grading.plan import Plan
from recipes.nano.items.mix import prompt_of
from tests.conftest import ROOT

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
WHO = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return dsv4.load(mode="fp32", context_length=4096)  # the numerics of the card


def test_a_sum_with_visible_thinking(model: LocalModel) -> None:
    answer = model.chat(SUM, temperature=0)
    assert reward("number", answer.content, 42) == 1.0
    assert "7+5=12" in answer.reasoning
    assert answer.finish is FinishReason.STOP


def test_thinking_off(model: LocalModel) -> None:
    answer = model.chat(WHO, thinking=False, temperature=0)
    assert "nano" in answer.content
    assert not answer.reasoning


def test_stream_is_the_chat(model: LocalModel) -> None:
    stream = model.stream(SUM, temperature=0)
    deltas = list(stream)
    whole = model.chat(SUM, temperature=0)
    assert "".join(d.text for d in deltas if isinstance(d, ContentDelta)) == whole.content
    assert "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)) == whole.reasoning
    assert stream.finish is FinishReason.STOP


def test_seeds_stop_strings_and_lengths(model: LocalModel) -> None:
    first, second = (model.chat(SUM, temperature=1.5, seed=4).completion.tokens for _ in range(2))
    assert first == second
    whole = model.chat(SUM, temperature=0).content
    assert model.chat(SUM, temperature=0, stop=" 42").content == whole.partition(" 42")[0] != whole
    cut = model.chat(SUM, temperature=0, max_tokens=3)
    assert (cut.finish, len(cut.completion.tokens)) == (FinishReason.LENGTH, 3)
    with pytest.raises(ValueError, match="unknown option 'top_q'"):
        model.chat(SUM, top_q=1)


def test_logits_for_research(model: LocalModel) -> None:
    ids = model.encode_chat(SUM, True)
    logits_TV = model.logits(ids)
    assert logits_TV.shape == (len(ids), model.config.vocab_size)
    assert logits_TV.dtype is torch.float32
    assert int(logits_TV[-1].argmax()) == model.chat(SUM, temperature=0).completion.tokens[0]
    assert model.mtp_logits(ids).shape == (len(ids) - 1, model.config.vocab_size)


@pytest.mark.parametrize("mode", ["bf16", "release"])
def test_other_numerics_answer_too(mode: str, model: LocalModel) -> None:
    ids = model.encode_chat(WHO, False)
    other = dsv4.load(mode=mode, context_length=1024)
    assert "nano" in other.chat(WHO, thinking=False, temperature=0).content
    exact, close = model.logits(ids).softmax(-1), other.logits(ids).softmax(-1)
    assert not torch.equal(exact, close)
    assert float((exact - close).abs().sum(dim=-1).mean()) < 0.3


def test_by_default_it_runs_in_its_own_numerics() -> None:
    lines: list[str] = []
    own = dsv4.load(context_length=1024, threads=1, say=lines.append)
    assert own.mode == "release"
    assert reward("number", own.chat(SUM, temperature=0).content, 42) == 1.0
    assert lines[0] == "nano: mode release (the weights are stored in FP8 and FP4), context 1,024 tokens"
    assert lines[1].startswith("memory: up to ")
    assert own.plan is not None
    assert own.plan.cache.bytes == own.engine.cache.store.bytes


def test_the_card_tells_the_truth() -> None:
    folder = default_model_folder()
    figures = json.loads((folder / "accuracy.json").read_text())
    assert table(figures["rows"]).strip() in (folder / "README.md").read_text()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20 * 2**20


def test_the_recipe_has_the_bundled_model(model: LocalModel) -> None:
    base = Recipe.from_file(ROOT / "recipes/nano/base.toml").config(model.tokenizer.vocab_size)
    layers = Chain.from_file(ROOT / "recipes/nano/chain/chain.toml").stage("deeper").command[-1]
    made = deeper_config(base, [int(layer) for layer in layers.split(",")])
    stored = {"quantized": True, "expert_dtype": "fp4", "end_token_ids": model.config.end_token_ids}
    assert made.with_changes(**stored) == model.config


@pytest.mark.parametrize("thinking", [True, False])
def test_a_sample_of_the_card_is_graded_again(model: LocalModel, thinking: bool) -> None:
    """The first questions of those behind the card's figure; as far from it as so few may be by chance."""
    count = 24
    figures = json.loads((default_model_folder() / "accuracy.json").read_text())
    figure = figures["rows"]["arithmetic"]["high" if thinking else "non-think"]["mean"]
    (ability,) = (ability for ability in abilities() if ability.name == "arithmetic")
    items = Plan(items=count).draw(ability)
    answers = [model.chat(prompt_of(item), thinking=thinking, temperature=0, max_tokens=400) for item in items]
    right = [reward(item.verifier, said.content, item.answer) for item, said in zip(items, answers, strict=True)]
    assert abs(sum(right) / count - figure) <= 3 * (figure * (1 - figure) / count) ** 0.5


def dsv4_command(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsv4.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=120)


def test_generate_and_chat_commands() -> None:
    said = dsv4_command("generate", "--chat", "--prompt", "What is 17 + 25?", "--temperature", "0")
    assert said.returncode == 0
    assert reward("number", said.stdout, 42) == 1.0
    assert "7+5=12" in said.stderr
    talk = dsv4_command("chat", "--temperature", "0", text="/nothink\nWho are you?\n/quit\n")
    assert talk.returncode == 0
    assert "nano" in talk.stdout
    wrong = dsv4_command("generate", "--prompt", "x", "--temperature", "3")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "temperature must be in [0, 2], got 3.0" in wrong.stderr


def test_inspect_and_check_commands(tmp_path: Path) -> None:
    plot = tmp_path / "out.svg"
    told = dsv4_command("inspect", "flash", "--json", "--plot", str(plot))
    facts = json.loads(told.stdout)
    assert facts["disk"]["tensors"] == 69187
    assert [round(facts["contexts"][-1][key], 2) for key in ("kv_times_smaller", "flops_share")] == [13.67, 0.1]
    assert plot.read_text().count("<polyline") == 6
    assert dsv4_command("check", str(default_model_folder())).returncode == 0


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    served = dsv4.load(mode="fp32", context_length=4096)
    app = create_app(served.service, served.tokenizer, model_name="nano", defaults=served.defaults)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with open_listener("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key="none") as client:
            yield client
        server.should_exit = True
        thread.join()
    served.service.close()


def test_the_sdk_gets_an_answer(client: openai.OpenAI, model: LocalModel) -> None:
    reply = client.chat.completions.create(model="nano", messages=SUM, temperature=0)  # type: ignore[arg-type]
    message, usage = reply.choices[0].message, reply.usage
    own = model.chat(SUM, temperature=0)
    assert (message.content, message.reasoning_content) == (own.content, own.reasoning)  # type: ignore[attr-defined]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (own.prompt_tokens, len(own.completion.tokens) + 1)


def test_the_sdk_streams_without_thinking(client: openai.OpenAI) -> None:
    off = {"thinking": {"type": "disabled"}}
    stream = client.chat.completions.create(model="nano", messages=WHO, temperature=0, stream=True, extra_body=off)  # type: ignore[call-overload]
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    assert "nano" in "".join(delta.content or "" for delta in deltas)
    assert not any(getattr(delta, "reasoning_content", None) for delta in deltas)


def test_answers_at_the_same_time(client: openai.OpenAI, model: LocalModel) -> None:
    questions = [f"What is {n} + {n}?" for n in range(3, 9)]
    replies: dict[str, str | None] = {}

    def ask(question: str) -> None:
        reply = client.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": question}], temperature=0
        )
        replies[question] = reply.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {q: model.chat([{"role": "user", "content": q}], temperature=0).content for q in questions}
    assert replies == expected
