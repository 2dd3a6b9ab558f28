"""Texts for the blocks of a trace: plain words, the same for the same id, and the messages that they become."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dsv4.verify.texts import words
from dsv4.workload.trace import PromptBlock

USUAL_TOKENS_PER_WORD = 1.2  # of the words below in a large vocabulary
CACHED_BLOCKS = 4096


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How long texts are in tokens of one server. fixed: tokens of a prompt besides its words. The defaults are for
    servers that do not tell."""

    per_word: float = USUAL_TOKENS_PER_WORD
    fixed: int = 0

    def count(self, tokens: int) -> int:
        """Words of a text of so many tokens."""
        return max(1, round(tokens / self.per_word))


@lru_cache(CACHED_BLOCKS)
def block_text(salt: str, block_id: str, count: int) -> str:
    """So many words. Another id or salt gives another text."""
    digest = hashlib.blake2b(f"{salt}\0{block_id}".encode(), digest_size=8).digest()
    return words(count, seed=int.from_bytes(digest, "big"))


def messages(
    blocks: Iterable[PromptBlock], answers: Mapping[str, str], measure: TokenCount, salt: str
) -> list[dict[str, str]]:
    """The conversation of a prompt. answers: what the server answered, by id of the block that holds it; such a block
    has that text, as an agent sends it back."""
    found: list[dict[str, str]] = []
    left = measure.fixed  # the frame of the prompt counts as part of its first block
    for block in blocks:
        tokens = max(1, block.tokens - left)
        left = 0
        text = answers.get(block.id) or block_text(salt, block.id, measure.count(tokens))
        if found and found[-1]["role"] == block.role:
            found[-1]["content"] += f"\n{text}"
        else:
            found.append({"role": block.role, "content": text})
    return found
