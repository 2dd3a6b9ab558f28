"""Batches: a greedy answer is the same alone, streamed, and while fifteen others run."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dsv4.verify.answer import Answer
from dsv4.verify.endpoint import Body
from dsv4.verify.probe import Probe, difference, near_tie
from dsv4.verify.survey import GREEDY, QUIET, separate, thinking, user
from dsv4.verify.texts import QUESTIONS, words

QUESTION = "Is a greedy answer the same alone, streamed, and in a batch of 16?"
TOGETHER = 16
TOKENS = 32


def check(probe: Probe) -> None:
    """Run the check."""
    bodies = requests(probe.able.logprobs)
    alone = [probe.ask(body) for body in bodies]
    for body, answer in zip(bodies[:4], alone[:4], strict=True):
        _compare(probe, "repeat-differs", "the same answer to the same request", body, answer, probe.ask(body))
    for body, answer in zip(bodies, alone, strict=True):
        _compare(probe, "stream-differs", "the streamed answer is the whole one", body, answer, probe.stream(body))
    _check_thinking(probe)
    together = _together(probe, bodies)
    _compare_all(probe, bodies, alone, together, "in a batch of 16 different prompts")
    _compare_all(probe, bodies, alone, _together(probe, bodies, streamed=True), "streamed, in a batch of 16")
    same = [{**bodies[0], **separate("verify-same")}] * TOGETHER
    _compare_all(probe, same, [alone[0]] * TOGETHER, _together(probe, same), "in 16 copies at once")
    equal = sum(a.said == b.said for a, b in zip(alone, together, strict=True))
    probe.measure("same-in-batch", equal / TOGETHER, "share of answers that a batch of 16 did not change")


def requests(logprobs: bool) -> list[dict[str, Any]]:
    """Sixteen greedy requests of very different lengths."""
    scores = {"logprobs": True, "top_logprobs": 2} if logprobs else {}
    return [
        {
            "messages": user(f"{words(37 * place, seed=place)}\n\n{question}" if place % 3 == 2 else question),
            "max_tokens": TOKENS, **GREEDY, **QUIET, **scores, **separate(f"verify-batch-{place}"),
        }
        for place, question in enumerate(QUESTIONS)
    ]  # fmt: skip


def _check_thinking(probe: Probe) -> None:
    """With reasoning, streamed and not. A seed fixes the answer where the server sets the temperature itself."""
    body = {"messages": user(QUESTIONS[0]), "max_tokens": 4 * TOKENS, **GREEDY, **thinking()}
    _compare(probe, "stream-differs", "the streamed answer is the whole one", body, probe.ask(body), probe.stream(body))


def _together(probe: Probe, bodies: Sequence[Body], *, streamed: bool = False) -> list[Answer]:
    """The answers to all requests, sent at once."""
    probe.check_time()
    ask = probe.endpoint.stream if streamed else probe.endpoint.chat
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = list(threads.map(ask, bodies))
    for body, answer in zip(bodies, answers, strict=True):
        probe.check_form(answer, {**body, "stream": streamed})
    return answers


def _compare_all(
    probe: Probe, bodies: Sequence[Body], alone: Sequence[Answer], together: Sequence[Answer], how: str
) -> None:
    for body, one, other in zip(bodies, alone, together, strict=True):
        _compare(probe, "batch-differs", f"{how}, the answer is the one alone", body, one, other)


def _compare(probe: Probe, code: str, rule: str, body: Body, one: Answer, other: Answer) -> None:
    if one.said != other.said:
        expected, got = difference(one, other)
        probe.fault(code, f"{expected} ({rule})", got, body, tie=near_tie(one, other))
    for name in ("prompt_tokens", "completion_tokens"):
        if one.said == other.said and one.count(name) != other.count(name):
            probe.fault("usage-differs", f"{name} {one.count(name)} ({rule})", other.count(name), body)
