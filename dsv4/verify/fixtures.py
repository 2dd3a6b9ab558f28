"""Fixtures: the likelihoods of recorded answers, token by token, beside those of the endpoint.

The endpoint follows each recorded answer: it is asked for the greedy answer, and where a token differs from the
recorded one, for the rest after the recorded text (a last assistant message that is continued). So one request gives
the likelihoods of many places, and every place has the recorded tokens before it.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

from dsv4.verify.answer import Scored
from dsv4.verify.fixture_file import Fixture, read_fixtures, text_of
from dsv4.verify.probe import NotPossible, Probe
from dsv4.verify.record import TOP
from dsv4.verify.settings import Bound
from dsv4.verify.survey import GREEDY, QUIET, continued

QUESTION = "Are recorded answers as likely here as where they were recorded?"
PAIRED = 5  # the likeliest tokens of a place whose order is compared
# a right server in another arithmetic is well inside; one with wrong weights, prompts or positions is far outside
BOUNDS = (
    Bound("fixtures.first-token", ">=", 0.9),
    Bound("fixtures.top-1", ">=", 0.9),
    Bound("fixtures.nll-excess", "<=", 0.1),
)

Place = tuple[Scored, Scored]  # the recorded token, and what the endpoint samples there


def check(probe: Probe) -> None:
    """Run the check. Raises NotPossible without a file, or without log-probabilities."""
    if probe.settings.fixtures is None:
        raise NotPossible("no file of fixtures was given (--fixtures; --record writes one)")
    if not probe.able.logprobs:
        raise NotPossible("needs log-probabilities of chat completions")
    places: list[Place] = []
    prefixes: list[float] = []
    first, lost = 0, 0
    fixtures = read_fixtures(probe.settings.fixtures)
    for fixture in fixtures:
        followed = _followed(probe, fixture)
        known = [(token, here) for token, here in zip(fixture.tokens, followed, strict=True) if here is not None]
        lost += len(fixture.tokens) - len(known)
        places += known
        same = next((i for i, (t, here) in enumerate(zip(fixture.tokens, followed, strict=True)) if not _same(t, here)),
                    len(followed))  # fmt: skip
        prefixes.append(same / len(followed))
        first += same > 0
    if not places:
        raise NotPossible("the endpoint gave no log-probabilities for any recorded token")
    probe.measure(
        "first-token", first / len(fixtures), f"share of {len(fixtures)} answers with the recorded first token"
    )
    probe.measure(
        "prefix", _mean(prefixes), "longest common prefix of the greedy answer, as a share of the recorded one"
    )
    _measure(probe, places)
    if lost:
        probe.measure("lost", lost, "recorded tokens that could not be compared")


def likelihood(token: Scored, here: Scored) -> float:
    """The log-probability of a recorded token at the endpoint; of one beyond the alternatives, that of the last
    alternative, which is more than it has."""
    if token.data == here.data:
        return here.logprob
    top = dict(here.top)
    return top.get(token.data, min([*top.values(), here.logprob]))


def _followed(probe: Probe, fixture: Fixture) -> list[Scored | None]:
    """What the endpoint samples at each place of a recorded answer; None where it cannot be asked."""
    found: list[Scored | None] = []
    tokens, prompt = fixture.tokens, None
    while len(found) < len(tokens):
        text = text_of(tokens[: len(found)])
        if text is None or (found and not probe.able.continues):
            found.append(None)  # within a character, or not to be asked
            continue
        asked = continued(fixture.messages, text) if found else {"messages": [*fixture.messages]}
        limit = {"max_tokens": len(tokens) - len(found), "logprobs": True, "top_logprobs": TOP}
        answer = probe.ask({**asked, **limit, **GREEDY, **QUIET})
        length = answer.count("prompt_tokens")
        prompt = length if not found else prompt
        if not answer.tokens or (found and length is not None and length != (prompt or 0) + len(found)):
            found.append(None)  # it ends there, or the recorded text has become other tokens
            continue
        for here in answer.tokens[: len(tokens) - len(found)]:
            found.append(here)
            if here.data != tokens[len(found) - 1].data:
                break
    return found


def _measure(probe: Probe, places: Sequence[Place]) -> None:
    here = [-likelihood(token, other) for token, other in places]
    there = [-token.logprob for token, _ in places]
    probe.measure("nll", _mean(here), f"nats a token of the recorded answers ({len(places)} tokens)")
    probe.measure("nll-excess", _mean(here) - _mean(there), "the same, less that where they were recorded")
    apart = [abs(a - b) for a, b in zip(here, there, strict=True)]
    probe.measure("target-mae", _mean(apart), "mean difference of a recorded token's log-probability, in nats")
    same = [float(_same(token, other)) for token, other in places]
    probe.measure("top-1", _mean(same), "share of places with the recorded token as the likeliest")
    recalls = [_recall(token, other) for token, other in places if token.top and other.top]
    if recalls:
        probe.measure("top-n-recall", _mean(recalls), "share of the recorded alternatives that are alternatives here")
    ordered = [order for token, other in places for order in _orders(token, other)]
    if ordered:
        probe.measure("pair-rate", _mean(ordered), f"share of pairs of the {PAIRED} likeliest in the recorded order")


def _same(token: Scored, here: Scored | None) -> bool:
    return here is not None and token.data == here.data


def _recall(token: Scored, here: Scored) -> float:
    count = min(len(token.top), len(here.top))
    wanted = {data for data, _ in token.top[:count]}
    return len(wanted & {data for data, _ in here.top}) / len(wanted)


def _orders(token: Scored, here: Scored) -> Iterable[float]:
    """For each pair of likely recorded tokens that both are known here: 1 if their order is the recorded one."""
    known = dict(here.top)
    likely = [data for data, _ in token.top[:PAIRED] if data in known]
    return [float(known[better] >= known[worse]) for better, worse in combinations(likely, 2)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
