"""What a suite is: plain data and plain functions, without inspect-ai.

A suite is one file in `dsv4/evals/suites` with a `SUITE`; its name is that of the file. A row of its data becomes an
`Item` (what is asked, and what is right), a server gives an `Answer`, and the suite makes a `Score` of both.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dsv4.verify.answer import Answer

Row = Mapping[str, Any]  # of the data, as it was read
Message = Mapping[str, Any]  # a chat message of OpenAI's interface


class Mode(StrEnum):
    """How much the model thinks before it answers (report, section 5.1.2)."""

    NON_THINK = "non-think"
    HIGH = "high"
    MAX = "max"


# tokens of prompt and answer in the report's evaluation (section 5.3.1)
WINDOWS = {Mode.NON_THINK: 8 * 1024, Mode.HIGH: 128 * 1024, Mode.MAX: 384 * 1024}


@dataclass(frozen=True, slots=True)
class Ask:
    """For what a row becomes an item. index: its place in the data. Whatever is random comes from seed and index."""

    mode: Mode
    seed: int
    index: int


@dataclass(frozen=True, slots=True)
class Item:
    """One question. target: what is right; JSON. group: a row of the report (a subject, a length). cluster: items of
    one cluster are variants of one question, and their errors are not independent; "" = a cluster of its own. tools:
    sent as they are. fields: more fields of the request. data: what the scorer or the figures need besides; JSON.
    hidden: what only the scorer needs (tests of a program)."""

    id: str
    messages: tuple[Message, ...]
    target: Any
    group: str = ""
    cluster: str = ""
    tools: tuple[Message, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    hidden: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """value: in [0, 1]. found: what was extracted from the answer. why: for people. figures: others, whose means are
    reported."""

    value: float
    found: str = ""
    why: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Graded:
    """One scored answer. item, sample: which. finish: why the answer ended. prompt_tokens, tokens: of prompt and
    answer, None where the server did not count them. data: that of the item."""

    item: str
    sample: int
    value: float
    group: str = ""
    cluster: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    finish: str = ""
    prompt_tokens: int | None = None
    tokens: int | None = None
    seconds: float = 0.0
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure. mode: "" = a base model. value: in the unit of the suite. setting: what differs from how the
    suite asks, "" = nothing known."""

    model: str
    mode: str
    value: float
    source: str
    setting: str = ""


@dataclass(frozen=True, slots=True)
class HubData:
    """Files of a data set on the hub, as patterns of paths. revision: a commit; a branch where no commit is known. The
    commit that was fetched is recorded."""

    repo: str
    revision: str
    files: tuple[str, ...]
    gated: bool = False


@dataclass(frozen=True, slots=True)
class PackageData:
    """Files inside an installed package. name: in the package index. module: that has them."""

    name: str
    module: str
    files: tuple[str, ...]


def estimated_tokens(text: str) -> int:
    """Tokens of an English text, at four characters each."""
    return -(-len(text) // 4)


@dataclass(frozen=True, slots=True)
class Generate:
    """What a generated suite is made with. count: items; None = as many as the suite has. lengths: tokens of the
    texts, for suites with texts. small: the stand-in, a handful of short items for tests. count_tokens: of a text, with
    the tokenizer of the endpoint; without one, an estimate."""

    seed: int
    count: int | None = None
    lengths: tuple[int, ...] = ()
    small: bool = False
    count_tokens: Callable[[str], int] = estimated_tokens

    def each(self, kinds: int, default: int) -> int:
        """Items of each of so many kinds (lengths, tasks), that `count` are made or a few more."""
        return default if self.count is None else -(-self.count // kinds)


@dataclass(frozen=True, slots=True)
class ModelGrader:
    """Grading by another model. prompt: what it is asked. verdict: what its answer means."""

    prompt: Callable[[Item, Answer], str]
    verdict: Callable[[str], Score]


# one turn of a conversation: messages and tools in, the model's answer out
Talk = Callable[[Sequence[Message], Sequence[Message]], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A benchmark: how its rows are asked, and how answers are scored.

    about: one sentence. score: may block, and runs in a thread. files: patterns of names in a folder that a user
    gives; the files of the first pattern with any are read. join: makes the rows of those of all files, where one
    question lies in several. keep: rows that belong to the suite. date: of a row, as
    YYYY-MM-DD, for a window of dates. hub, package, generate: where rows come from besides.
    samples, temperature, max_tokens: the published settings; max_tokens None = the report's window of the mode, less
    the prompt. play: a conversation of several turns; None = one question.
    judge: grades instead of `score` where the user names a judge. summary: figures of all answers that are no means.
    unit: of the main figure, 100 times the mean of values. axes: two fields of the items' data over which the report
    shows a map. by_length: whether `generate` makes texts of chosen lengths.
    """

    name: str
    about: str
    item: Callable[[Row, Ask], Item]
    score: Callable[[Item, Answer], Score]
    published: tuple[Published, ...] = ()
    files: tuple[str, ...] = ()
    hub: HubData | None = None
    package: PackageData | None = None
    generate: Callable[[Generate], Iterable[Row]] | None = None
    join: Callable[[Sequence[Row]], Sequence[Row]] | None = None
    keep: Callable[[Row], bool] | None = None
    date: Callable[[Row], str] | None = None
    samples: int = 1
    temperature: float = 1.0
    max_tokens: Mapping[Mode, int] | None = None
    play: Callable[[Item, Talk], Awaitable[Answer]] | None = None
    judge: ModelGrader | None = None
    summary: Callable[[Sequence[Graded]], Mapping[str, float]] | None = None
    unit: str = "%"
    axes: tuple[str, str] | None = None
    by_length: bool = False

    def budget(self, mode: Mode) -> int:
        """Tokens of an answer at most; of prompt and answer together where the suite has no limits of its own."""
        return WINDOWS[mode] if self.max_tokens is None else self.max_tokens[mode]


def modes(model: str, source: str, *values: float | None, setting: str = "") -> tuple[Published, ...]:
    """Published figures of one model in the modes non-think, high and max; None = none was published."""
    return tuple(
        Published(model, mode.value, value, source, setting)
        for mode, value in zip(Mode, values, strict=True)
        if value is not None
    )
