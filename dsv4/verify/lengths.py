"""Prompt lengths: a prompt of any length gives the token that decoding gave at the same place, cold and after a hit.

A server computes a token in two ways: after a whole prompt (prefill), or after the token before it (decode). Greedy
answers must agree. So a few tokens are sampled after prompts of many lengths; then the prompt is sent again together
with the first 1, 2, 3, ... of these tokens, and must give the next one. Nothing else has to be known about the model.
Lengths cover every residue of 4 (entries of compressed sparse attention) and of 128 (heavily compressed attention, and
the window), since faults hide at these borders.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv4.verify.answer import Answer, Scored
from dsv4.verify.endpoint import CHAT, Body
from dsv4.verify.probe import TIE, NotPossible, Probe
from dsv4.verify.survey import GREEDY, QUIET, continued, separate, tokenized, user
from dsv4.verify.texts import words

QUESTION = "Does each prompt length give the token that decoding gave there, cold and after a prefix hit?"
PERIODS = (4, 128)
SAMPLED = 5  # tokens after each prompt: their places cover every residue of 4
MORE = 48  # prompts for lengths that are missing because answers ended early
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
    compared = _Compared()
    # in text residues are missing because texts become other tokens, which further prompts do as well
    for begin in begins(len(source), compared, MORE if writer.kind == "ids" else 0):
        if sum(found.times for found in probe.result.findings) >= ENOUGH:
            probe.skip(f"prompts from {begin} tokens on: {ENOUGH} faults were enough")
            break
        _compare_after(writer, source[:begin], compared)
    if not compared.tokens:
        raise NotPossible("no token could be compared: answers end at once, or their tokens change as text")
    probe.measure("compared", compared.tokens, f"tokens compared, prompts as {writer.kind}")
    for period in PERIODS:
        residues = len({length % period for length in compared.lengths})
        probe.measure(f"residues-{period}", residues, f"prompt lengths modulo {period} that were compared, of {period}")
    told = "of these prompts, those that the endpoint had cached although their user was new"
    probe.measure("not-cold", compared.hits, told)


@dataclass(slots=True)
class _Compared:
    """What was compared so far. lengths: of prompts, as the endpoint counts them. beyond: tokens of a prompt that are
    none of its pieces. hits: prompts that the endpoint had cached."""

    tokens: int = 0
    hits: int = 0
    beyond: int = 0
    lengths: set[int] = field(default_factory=set)

    def has(self, length: int) -> bool:
        """Whether a length with this residue was compared."""
        return any((length - known) % PERIODS[-1] == 0 for known in self.lengths)


def begins(longest: int, compared: _Compared, more: int) -> Iterator[int]:
    """Numbers of pieces, the borders first: around 4, 128 and multiples, every fourth of a whole period, then up to
    `more` of another period whose residues are still missing, because answers ended early."""
    period = PERIODS[-1]
    yield from (begin for begin in (2, 3, 124, 126, 252, 254, 510, *range(260, 260 + period, 4)) if begin <= longest)
    for begin in range(260 + period, min(longest, 260 + 2 * period)):
        if more and not compared.has(begin + compared.beyond + 1):
            more -= 1
            yield begin


def _compare_after(writer: Writer, base: Sequence[Piece], compared: _Compared) -> None:
    """Sample a few tokens after one prompt, and ask for each of them again after the ones before it."""
    begin, probe = len(base), writer.probe
    body = writer.body(base, (), SAMPLED, f"verify-{begin}")
    cold = writer.ask(body)
    _check_hit(writer, body, cold)
    pieces = writer.pieces(cold)
    length = cold.count("prompt_tokens")
    compared.beyond = 0 if length is None else length - begin
    for known in range(1, min(len(pieces), len(cold.tokens))):
        body = writer.body(base, pieces[:known], 1, f"verify-{begin}-{known}")
        answer = writer.ask(body)
        if length is not None and answer.count("prompt_tokens") != length + known:
            # in text, what was sampled may become other tokens; in ids it may not
            if writer.kind == "ids":
                expected = f"{length + known} prompt tokens for {begin + known} ids"
                probe.fault("prompt-count", expected, answer.usage, body, path=writer.path)
            continue
        compared.tokens += 1
        compared.lengths.add(begin + known if length is None else length + known)
        compared.hits += bool(answer.count("prompt_tokens_details.cached_tokens"))
        _compare(writer, body, answer, cold.tokens[known], pieces[known])


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
