"""A generator whose requests are recorded without their texts: lengths, times, and hashes of prefixes.

The file is a trace (docs/capacity.md): `dsv4 bench serve --trace` sends it again, `dsv4 simulate --trace` simulates it.
"""

import asyncio
import hashlib
import json
import os
import secrets
import time
from array import array
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from dsv4.generation import RequestOptions, SamplingParams, TokenEvent, TokenGenerator
from dsv4.observe import log
from dsv4.server.backend.wrapper import GeneratorWrapper

BLOCK_TOKENS = 256
# hashing a longer prompt would hold up other answers
SHORT_PROMPT = 32_768


class Recorded(GeneratorWrapper):
    """Passes every call on to `inner`, and adds a line to `file` when an answer ends or is cut.

    The hash of a block covers all blocks before it and the owner of the request, with a key that only this process
    knows, so that no text can be guessed from a file. Raises OSError if the file cannot be opened.
    """

    def __init__(self, inner: TokenGenerator, file: Path) -> None:
        super().__init__(inner)
        self._key, self._start = secrets.token_bytes(32), time.monotonic()
        # only the user may read it: times and lengths tell something too
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._out = open(handle, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (open as long as the server)

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """See TokenGenerator."""
        began, first, tokens = time.monotonic(), None, 0
        owner = options.owner if options is not None else ""
        events = self._inner.stream(prompt, params, options)
        try:
            async for event in events:
                if event.token is not None:
                    tokens += 1
                    first = first or time.monotonic()
                yield event
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()
            if tokens:
                ids = await self._hashes(prompt, owner)
                self._write(
                    {
                        "timestamp": round(1000 * (began - self._start), 1),
                        "input_length": len(prompt),
                        "output_length": tokens,
                        "hash_ids": ids,
                        "block_size": BLOCK_TOKENS,
                        "first_token": round(1000 * ((first or began) - began), 1),
                        "duration": round(1000 * (time.monotonic() - began), 1),
                    }
                )

    def close(self) -> None:
        """Close the file."""
        self._out.close()

    async def _hashes(self, prompt: Sequence[int], owner: str) -> list[str]:
        if len(prompt) <= SHORT_PROMPT:
            return prefix_hashes(prompt, owner, self._key)
        return await asyncio.to_thread(prefix_hashes, prompt, owner, self._key)

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._out.write(json.dumps(line) + "\n")
        except (OSError, ValueError) as error:  # a full disk, or a server that has ended: answers go on
            log("trace_not_written", error=str(error))


def prefix_hashes(tokens: Sequence[int], owner: str, key: bytes) -> list[str]:
    """A hash for each block of tokens, the last one perhaps shorter: equal for two prompts as long as all tokens before
    and in the block are."""
    last = hashlib.blake2b(owner.encode("utf-8", "surrogatepass"), key=key, digest_size=16).digest()
    found = []
    for start in range(0, len(tokens), BLOCK_TOKENS):
        block = array("q", tokens[start : start + BLOCK_TOKENS]).tobytes()
        last = hashlib.blake2b(last + block, key=key, digest_size=16).digest()
        found.append(last[:8].hex())
    return found
