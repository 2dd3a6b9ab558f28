"""The program in an answer: fenced blocks of code in a text that may hold several, or none."""

import re

# a fence stands alone on its line, but for spaces before it and the language after it
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*(\w*)[^\n`]*$", re.MULTILINE)


def blocks(answer: str) -> list[str]:
    """The fenced blocks of an answer in their order. A block that is not closed is none: the answer was cut off."""
    found: list[str] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(answer):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2]:
            found.append(answer[opened.end() + 1 : fence.start()])
            opened = None
    return found


def last_block(answer: str) -> str:
    """The last fenced block, as LiveCodeBench takes it: a model may show drafts before. "" if there is none."""
    return next(reversed(blocks(answer)), "")


def function_block(answer: str, name: str) -> str:
    """The last block that defines the function; without one, the last block; without blocks, the whole answer."""
    found = blocks(answer)
    defined = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", re.MULTILINE)
    return next((block for block in reversed(found) if defined.search(block)), found[-1] if found else answer)
