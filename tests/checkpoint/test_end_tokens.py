"""Every end token of config.json and generation_config.json ends an answer, and none of them becomes text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import dsv4
from dsv4.answer import AnswerInProgress
from dsv4.cli.folders import default_model_folder
from dsv4.encoding import Tokenizer
from dsv4.generation import FinishReason, SamplingParams, TokenEvent

SIZE = {"context_length": 512, "memory": 64 << 20}


@pytest.fixture(scope="module")
def said() -> list[int]:
    """The first tokens nano says to a prompt, greedily."""
    model = dsv4.load(**SIZE)
    events = model.events([0, 5, 9, 700], SamplingParams(max_tokens=6, temperature=0))
    return [event.token for event in events]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_each_end_token_ends_an_answer(file: str, said: list[int], tmp_path: Path) -> None:
    folder = shutil.copytree(default_model_folder(), tmp_path / "m")
    raw: dict[str, Any] = json.loads((folder / file).read_text())
    end = next(token for token in said[1:] if token != said[0])
    (folder / file).write_text(json.dumps({**raw, "eos_token_id": [1, end]}))
    model = dsv4.load(folder, **SIZE)
    events = list(model.events([0, 5, 9, 700], SamplingParams(max_tokens=6, temperature=0)))
    assert [event.token for event in events] == said[: said.index(end) + 1]
    assert events[-1].finish is FinishReason.STOP
    text = model.generate([0, 5, 9, 700], max_tokens=6, temperature=0)
    assert text == model.tokenizer.decode(said[: said.index(end)])


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_answer_that_is_demanded_does_not_end_before_it_is_whole(file: str, thinking: bool, tmp_path: Path) -> None:
    """With an end token that the model says wherever it may, of which its grammar knows nothing."""
    folder = shutil.copytree(default_model_folder(), tmp_path / "m")
    raw: dict[str, Any] = json.loads((folder / file).read_text())
    end = Tokenizer.load(folder).encode_text("Z")[0]
    (folder / file).write_text(json.dumps({**raw, "eos_token_id": [1, end]}))
    model = dsv4.load(folder, **SIZE)
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}}, "required": ["a"]}
    options: dict[str, Any] = {"thinking": thinking, "max_tokens": 200, "logit_bias": {end: 100.0}, "temperature": 0}
    if thinking:
        options["thinking_budget"] = 8
    question = [{"role": "user", "content": "Hi"}]
    form = {"type": "json_schema", "json_schema": {"schema": {**schema, "additionalProperties": False}}}
    answer = model.chat(question, response_format=form, **options)
    assert answer.finish is FinishReason.STOP
    assert isinstance(json.loads(answer.content)["a"], str)
    free = model.chat(question, **{**options, "thinking_budget": None})
    assert (free.content, free.completion.tokens, free.finish) == ("", [], FinishReason.STOP)


def test_an_end_token_is_no_text_of_the_answer() -> None:
    tokenizer = Tokenizer.load(default_model_folder())
    hello, world = tokenizer.encode_text("hello"), tokenizer.encode_text(" world")
    answer = AnswerInProgress(tokenizer, thinking=False)
    for token in (*hello, *world[:-1]):
        answer.step(TokenEvent(token))
    answer.step(TokenEvent(world[-1], FinishReason.STOP))
    assert answer.parsed.content == tokenizer.decode([*hello, *world[:-1]])
    assert answer.finish is FinishReason.STOP
