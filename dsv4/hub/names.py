"""Which names mean a model on a hub: the short names of the released weights, and any `owner/name`."""

import re
from dataclasses import dataclass

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# in file names, where a slash cannot stand; no repository has it in its name
SEPARATOR = "--"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of a hub. name: `owner/name`; bytes: of its tensors, None where it is not known before one asks."""

    name: str
    bytes: int | None = None

    @property
    def flat(self) -> str:
        """The name as one part of a path: `owner--name`."""
        return self.name.replace("/", SEPARATOR)

    @property
    def title(self) -> str:
        """The name without its owner."""
        return self.name.partition("/")[2]


RELEASED = {
    "flash": Repository("deepseek-ai/DeepSeek-V4-Flash", 159_609_485_896),
    "pro": Repository("deepseek-ai/DeepSeek-V4-Pro", 864_704_792_696),
    "flash-0731": Repository("deepseek-ai/DeepSeek-V4-Flash-0731", 166_878_536_440),
    "pro-0813": Repository("deepseek-ai/DeepSeek-V4-Pro-0813", 892_727_580_904),
    "flash-base": Repository("deepseek-ai/DeepSeek-V4-Flash-Base"),
    "pro-base": Repository("deepseek-ai/DeepSeek-V4-Pro-Base"),
}
"""The released models by short name. Sizes are the published totals of the indexes, in bytes; those of the Base models
are counted from their layout."""


def repository(text: str) -> Repository | None:
    """The repository behind `flash`, `pro`, ... or `owner/name`; None for text that is no such name."""
    if text in RELEASED:
        return RELEASED[text]
    if not _REPOSITORY.fullmatch(text) or SEPARATOR in text or ".." in text:
        return None
    known = {released.name: released for released in RELEASED.values()}
    return known.get(text, Repository(text))
