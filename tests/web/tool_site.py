"""A server for tests of tools in the chat: its model writes the calls that the question lists.

`STEPS [[["calculator", {"expression": "6*7"}]], ...]` in a question: one list of calls for each turn. After the
last one the model answers with the number of turns.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from dsv4.encoding import Tokenizer
from dsv4.encoding.segments import SegmentWriter
from dsv4.encoding.write_calls import write_tool_calls
from dsv4.generation import SamplingParams
from dsv4.server import Settings, create_app
from dsv4.server.mcp import AllowedMcp
from dsv4.testing.stub import StubGenerator

# a question for people, for pictures
QUESTION = "What is 17 % of 2,340, and which of the numbers from 30 to 60 are prime?"
SIEVE = """const primes = [];
for (let n = 30; n <= 60; n += 1) {
  if (![2, 3, 5, 7].some((factor) => n % factor === 0)) primes.push(n);
}
primes.join(", ")"""
# paced, so that a page shows calls as they are written
SECONDS_PER_TOKEN = 0.004


def steps(*turns: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A question that makes the model write these calls, turn by turn."""
    return "STEPS " + json.dumps([[list(call) for call in turn] for turn in turns])


def scripted(tokenizer: Tokenizer) -> StubGenerator:
    """The model."""
    dialect = tokenizer.dialect

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        text = tokenizer.decode(list(prompt))
        turns, rest = planned(text)
        made = rest.count(dialect.calls_close)
        out = SegmentWriter()
        if prompt[-1] == tokenizer.token_id(dialect.think_open):
            out.data("I look at what I have.")
            out.markup(dialect.think_close)
        if made < len(turns):
            calls = [{"function": {"name": name, "arguments": json.dumps(values)}} for name, values in turns[made]]
            write_tool_calls(out, calls, "calls", dialect)
        else:
            out.data(f"I used {made} rounds of tools." if turns else "Ask me to use a tool.")
        return [*tokenizer.encode_segments(out.segments()), tokenizer.eos_id]

    return StubGenerator(script, context_length=32768, delay=SECONDS_PER_TOKEN)


def planned(text: str) -> tuple[list[list[Any]], str]:
    """The calls that the last question wants, turn by turn, and what stands behind it."""
    if QUESTION in text:
        turns = [[("calculator", {"expression": "0.17 * 2340"}), ("javascript", {"code": SIEVE})]]
        return turns, text.rsplit(QUESTION, 1)[1]
    if "STEPS " not in text:
        return [], ""
    question = text.rsplit("STEPS ", 1)[1]
    turns, end = json.JSONDecoder().raw_decode(question)
    return turns, question[end:]


@contextmanager
def tool_site(tokenizer: Tokenizer, allowed: AllowedMcp) -> Iterator[tuple[str, StubGenerator]]:
    """The address of a running server, and its model."""
    model = scripted(tokenizer)
    app = create_app(model, tokenizer, model_name="nano", settings=Settings(mcp=allowed))
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            thread.join(0.05)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}", model
    finally:
        running.should_exit = True
        thread.join(30)
