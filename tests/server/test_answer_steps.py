"""Answers token by token: the short way of ordinary tokens gives what all questions together give."""

import random

import pytest

from dsv4.answer import AnswerInProgress
from dsv4.encoding import Tokenizer
from dsv4.generation import FinishReason, TokenEvent, TokenLogprobs

PIECES = ("the", " cat", "\n", "\n\n", "<", " <", "x\n", "é", "\N{GRINNING FACE}", "\u2028", "</think>", "a<b", "END")
MARKUP = ("</think>", "<think>", "<｜User｜>", '<｜DSML｜invoke name="f">', "<｜DSML｜tool_calls>", "<｜DSML｜")


def tokens_of(tokenizer: Tokenizer, seed: int) -> list[int]:
    """Ordinary tokens, some characters cut in two, and now and then a control token."""
    draw = random.Random(seed)
    # a break that is shown alone, because a control token follows it
    tokens = tokenizer.encode_text("\n<think>x\n", trusted=True) if seed % 4 == 0 else []
    for _ in range(60):
        if draw.random() < 0.06:
            tokens += tokenizer.encode_text(draw.choice(MARKUP), trusted=True)
            continue
        piece = tokenizer.encode_text(draw.choice(PIECES))
        tokens += piece[:1] if draw.random() < 0.1 else piece
    return tokens


def events_of(tokenizer: Tokenizer, seed: int, recorded: float) -> list[TokenEvent]:
    """recorded: the share of the tokens with log-probabilities."""
    draw = random.Random(-seed)
    events = [
        TokenEvent(token, logprobs=TokenLogprobs(-1.0, ()) if draw.random() < recorded else None)
        for token in tokens_of(tokenizer, seed)
    ]
    cut = TokenEvent(None, finish=FinishReason.LENGTH)
    return [*events, cut if seed % 2 else TokenEvent(tokenizer.eos_id, finish=FinishReason.STOP)]


@pytest.mark.parametrize("recorded", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("thinking", [True, False])
def test_the_short_way_changes_nothing(tokenizer: Tokenizer, thinking: bool, recorded: float) -> None:
    for seed in range(1, 151):
        given = {"thinking": thinking, "tools": bool(seed % 3), "single": bool(seed % 5), "continued": not seed % 7}
        stops = ("END",) if seed % 11 == 0 else ()
        short = AnswerInProgress(tokenizer, stops=stops, **given)
        # a stop string that no text holds: every token is asked all questions
        long = AnswerInProgress(tokenizer, stops=(*stops, "\ue000"), **given)
        for event in events_of(tokenizer, seed, recorded):
            assert short.step(event) == long.step(event)
            assert short.parsed == long.parsed
            counts = [(a.completion_tokens, a.reasoning_tokens, a.finish, a.finish_reason) for a in (short, long)]
            assert counts[0] == counts[1]
            if short.over:
                break


def test_most_tokens_take_the_short_way(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TokenEvent] = []
    whole = AnswerInProgress._any_step

    def counted(answer: AnswerInProgress, event: TokenEvent, text: str | None = None) -> object:
        asked.append(event)
        return whole(answer, event, text)

    monkeypatch.setattr(AnswerInProgress, "_any_step", counted)
    answer = AnswerInProgress(tokenizer, thinking=False)
    tokens = tokenizer.encode_text("the cat sat on the mat, and the dog saw it")
    for token in tokens:
        answer.step(TokenEvent(token))
    assert len(asked) == 1 < len(tokens)
