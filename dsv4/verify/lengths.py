"""Prompt lengths: a prompt of any length gives the token that decoding gave at the same place, cold and after a hit.

A server computes a token in two ways: after a whole prompt (prefill), or after the token before it (decode). Greedy
answers must agree. So a few tokens are sampled after prompts of many lengths; then the prompt is sent again together
with the first 1, 2, 3, ... of these tokens, and must give the next one. Nothing else has to be known about the model.
Lengths cover every residue of 4 (entries of compressed sparse attention) and of 128 (heavily compressed attention, and
the window), since faults hide at these borders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.verify.answer import Answer, Scored
from dsv4.verify.endpoint import CHAT, Body
from dsv4.verify.probe import TIE, NotPossible, Probe
from dsv4.verify.survey import GREEDY, QUIET, continued, separate, tokenized, user
from dsv4.verify.texts import words

QUESTION = "Does each prompt length give the token that decoding gave there, cold and after a prefix hit?"
PERIODS = (4, 128)
SAMPLED = 5  # tokens after each prompt: their places cover every residue of 4
ENOUGH = 12  # faults, after which further lengths tell nothing new
COMPLETIONS = "/v1/completions"

Piece = int | str  # of a prompt: a token id, or the text of about one token


@dataclass(frozen=True, slots=True)
class Writer:
    """Continues lists of pieces by one of three ways: text completions of ids or of text, or chat completions whose
    last assistant message is continued."""

    probe: Probe
    kind: str

    @property
    def path(self) -> str:
        return CHAT if self.kind == "chat" else COMPLETIONS

    def body(self, base: Sequence[Piece], more: Sequence[Piece], most: int, salt: str) -> dict[str, Any]:
        """The request that continues `base` and `more`, which was sampled after it, by up to `most` tokens."""
        fields: dict[str, Any] = {"max_tokens": most, **GREEDY, **separate(salt)}
        if self.kind == "ids":
            return {**fields, "prompt": [*base, *more], "logprobs": 2, "return_token_ids": True}
        if self.kind == "text":
            return {**fields, "prompt": "".join(map(str, (*base, *more))), "logprobs": 2}
        asked = user("".join(map(str, base)))
        said = continued(asked, "".join(map(str, more))) if more else {"messages": asked}
        return {**fields, **QUIET, **said, "logprobs": True, "top_logprobs": 2}

    def ask(self, body: Body) -> Answer:
        self.probe.check_time()
        endpoint = self.probe.endpoint
        return endpoint.chat(body) if self.kind == "chat" else endpoint.completion(body)

    def pieces(self, answer: Answer) -> list[Piece]:
        """What was sampled, up to an end token."""
        if self.kind == "ids":
            ids = list(answer.ids)
            return [*(ids[:-1] if answer.finish == "stop" else ids)]
        texts = [token.text for token in answer.tokens]
        # a token may end within a character, and control tokens are no text
        good = next((i for i, text in enumerate(texts) if "�" in text or text.startswith("<｜")), len(texts))
        return [*texts[:good]]


def check(probe: Probe) -> None:
    """Run the check. Raises NotPossible for an endpoint that neither completes texts nor continues a message."""
    writer = Writer(probe, _kind(probe))
    source = _source(probe, writer)
    lengths: set[int] = set()
    compared = hits = 0
    for begin in begins(len(source)):
        if sum(found.times for found in probe.result.findings) >= ENOUGH:
            probe.skip(f"prompts from {begin} tokens on: {ENOUGH} faults were enough")
            break
        base = source[:begin]
        body = writer.body(base, (), SAMPLED, f"verify-{begin}")
        cold = writer.ask(body)
        _check_hit(writer, body, cold)
        pieces = writer.pieces(cold)
        length = cold.count("prompt_tokens")
        for known in range(1, len(pieces)):
            body = writer.body(base, pieces[:known], 1, f"verify-{begin}-{known}")
            answer = writer.ask(body)
            if length is not None and answer.count("prompt_tokens") != length + known:
                # in text, what was sampled may become other tokens; in ids it may not
                if writer.kind == "ids":
                    expected = f"{length + known} prompt tokens for {begin + known} ids"
                    probe.fault("prompt-count", expected, answer.usage, body, path=writer.path)
                continue
            compared += 1
            lengths.add(begin + known if length is None else length + known)
            hits += bool(answer.count("prompt_tokens_details.cached_tokens"))
            _compare(writer, body, answer, cold.tokens[known], pieces[known])
    if not compared:
        raise NotPossible("no token could be compared: answers end at once, or their tokens change as text")
    probe.measure("compared", compared, f"tokens compared, prompts as {writer.kind}")
    for period in PERIODS:
        residues = len({length % period for length in lengths})
        probe.measure(f"residues-{period}", residues, f"prompt lengths modulo {period} that were compared, of {period}")
    probe.measure("not-cold", hits, "of these prompts, those that the endpoint had cached although their user was new")


def begins(longest: int) -> list[int]:
    """Lengths of the prompts, the borders first: around 4, 128 and multiples, then every fourth of a whole period."""
    borders = [2, 3, 124, 126, 252, 254, 510]
    period = list(range(260, 260 + 128, 4))
    return [begin for begin in (*borders, *period) if begin <= longest]


def _check_hit(writer: Writer, body: Body, cold: Answer) -> None:
    """The same prompt again, now from the cache where there is one: the same answer and the same count."""
    again = writer.ask(body)
    if [t.data for t in again.tokens] != [t.data for t in cold.tokens]:
        at = next((i for i, (a, b) in enumerate(zip(cold.tokens, again.tokens, strict=False)) if a.data != b.data), 0)
        tie = _tie(cold.tokens[at : at + 1])
        expected, got = ("".join(token.text for token in answer.tokens) for answer in (cold, again))
        hit = f"{got!r} with {again.count('prompt_tokens_details.cached_tokens')} cached tokens"
        writer.probe.fault("prefix-hit-differs", f"{expected!r} as before", hit, body, path=writer.path, tie=tie)
    if again.count("prompt_tokens") != cold.count("prompt_tokens"):
        writer.probe.fault("prompt-count", cold.usage, again.usage, body, path=writer.path)


def _compare(writer: Writer, body: Body, answer: Answer, decoded: Scored, piece: Piece) -> None:
    first = (answer.ids[:1] if writer.kind == "ids" else tuple(token.text for token in answer.tokens[:1])) or ("",)
    if first[0] == piece:
        return
    length = answer.count("prompt_tokens")
    place = "" if length is None else f" (prompt of {length} tokens: {length % 4} mod 4, {length % 128} mod 128)"
    got = repr("".join(token.text for token in answer.tokens)) + place
    expected = f"{decoded.text!r}, which decoding gave at this place"
    tie = _tie((decoded, *answer.tokens[:1]))
    writer.probe.fault("prefill-differs", expected, got, body, path=writer.path, tie=tie)


def _tie(tokens: Sequence[Scored]) -> bool:
    return any(token.gap is not None and token.gap < TIE for token in tokens)


def _kind(probe: Probe) -> str:
    able = probe.able
    if able.ids:
        return "ids"
    if able.completions:
        return "text"
    if able.continues and able.logprobs:
        return "chat"
    raise NotPossible("needs text completions with log-probabilities, or a last assistant message that is continued")


def _source(probe: Probe, writer: Writer) -> list[Piece]:
    """Pieces of one long plain text, of which prompts are beginnings."""
    text = words(600, seed=7)
    if writer.kind == "ids":
        return [*tokenized(probe.endpoint, text)]
    return [f"{' ' if place else ''}{word}" for place, word in enumerate(text.split())]
