"""A server for tests of the chat page, in a process of its own so that it can be killed: what it answers depends on a
word of the question.

    python -m tests.web.chat_site PORT [HISTORY]
"""

import asyncio
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette

from dsv4.encoding import Tokenizer
from dsv4.generation import RequestOptions, SamplingDefaults, SamplingParams, TokenEvent
from dsv4.server import create_app
from dsv4.server.storage.history import History
from dsv4.testing.stub import StubGenerator
from tests.conftest import ROOT

THOUGHT = "The user wants a sum. I add the two numbers, then I check the result by subtracting again.\n\nThat agrees."
LONG = " ".join(f"Sentence {number} of a long answer." for number in range(400))
MARKDOWN = """The sum is **632**. As a formula, $347 + 285 = 632$.

| step | digits | carry |
|---|---:|---:|
| ones | 7 + 5 = 12 | 1 |
| tens | 4 + 8 + 1 = 13 | 1 |
| hundreds | 3 + 2 + 1 = 6 | 0 |

In Python:

```python
def add(a: int, b: int) -> int:
    return a + b  # 632
```

1. Add the ones, **carry** one.
2. Add the tens:
   - with the carry,
   - and carry again.
"""
ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> [link](javascript:window.hacked=1)'
# a word of the question: thinking and answer
ANSWERS = {
    "sum": (THOUGHT, MARKDOWN),
    "long": ("Let me see.", LONG),
    "blank": ("Nothing comes to mind.", ""),
    "silent": ("", ""),
    "attack": (ATTACK, ATTACK),
    "prompt": ("", "{prompt}"),
}
HELLO = ("", "Hello from the model.")
EXAMPLES = ("What is the sum of 347 and 285?", "Sort 3 1 2 in ascending order", "Write a long story", "Who are you?")


class PacedGenerator(StubGenerator):
    """Waits between the tokens of long stories, and not otherwise."""

    tokenizer: Tokenizer

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        slow = "Write a long story" in self.tokenizer.decode(list(prompt))[-200:]
        async for event in super().stream(prompt, params, options):
            if slow:
                await asyncio.sleep(0.02)
            yield event


def application(history: Path | None = None) -> Starlette:
    """The server over the scripted model. history: folder for conversations."""
    tokenizer = Tokenizer.load(ROOT / "models" / "nano")

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        text = tokenizer.decode(list(prompt))
        question = text.rsplit("<｜User｜>", 1)[-1]
        thinks = question.rstrip().endswith("<think>")
        thought, answer = next((pair for word, pair in ANSWERS.items() if word in question), HELLO)
        written = f"{thought}</think>{answer}" if thinks else answer
        return [
            *tokenizer.encode_text(written.replace("{prompt}", text.replace("<", "(")), trusted=True),
            tokenizer.eos_id,
        ]

    generator = PacedGenerator(script, context_length=8192, reused=7)
    generator.tokenizer = tokenizer
    defaults = replace(SamplingDefaults(), example_prompts=EXAMPLES)
    kept = None if history is None else History(history)
    return create_app(generator, tokenizer, model_name="nano", defaults=defaults, history=kept)


class ChatSite:
    """Starts and kills the server; it is at the same address each time. history: folder for conversations."""

    def __init__(self, history: Path | None = None) -> None:
        self._arguments = [] if history is None else [str(history)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "tests.web.chat_site", str(self.port), *self._arguments]
        self.process = subprocess.Popen(command, cwd=ROOT)
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.1)
            else:
                return
        raise TimeoutError("the server does not answer")

    def kill(self) -> None:
        """As a fault of the machine would end it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    import uvicorn

    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    uvicorn.run(application(folder), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
