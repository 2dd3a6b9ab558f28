"""Recording fixtures: greedy answers of an endpoint that is trusted, such as the official service."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from dsv4.verify.endpoint import Endpoint
from dsv4.verify.fixture_file import Fixture, fixture_line
from dsv4.verify.survey import GREEDY, QUIET, user
from dsv4.verify.texts import QUESTIONS, words

TOKENS = 24
TOP = 20
LONG = (150, 300, 600)  # words of a text before the question: beyond the window, and over several compressed entries


def record(endpoint: Endpoint, file: Path, say: Callable[[str], None]) -> int:
    """Write the fixtures of an endpoint, and return how many. Raises ValueError for an endpoint that tells no
    log-probabilities, RefusedError, UnreachableError."""
    now, lines = datetime.now(UTC).isoformat(timespec="seconds"), []
    prompts = {f"question-{place}": text for place, text in enumerate(QUESTIONS)}
    prompts |= {f"long-{count}": f"{words(count, seed=count)}\n\n{QUESTIONS[count % 7]}" for count in LONG}
    for name, text in prompts.items():
        body = {"messages": user(text), "max_tokens": TOKENS, **GREEDY, **QUIET, "logprobs": True, "top_logprobs": TOP}
        answer = endpoint.chat(body)
        if not answer.tokens:
            raise ValueError(f"{endpoint.url} tells no log-probabilities: fixtures cannot be recorded from it")
        fixture = Fixture(name, tuple(user(text)), answer.tokens)
        lines.append(fixture_line(fixture, model=endpoint.model, recorded=now))
        say(f"{name}: {answer.content[:60]!r}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)
