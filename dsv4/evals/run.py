"""A run: its items, what is left of them, asking for it, and the estimate of what that costs."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dsv4.evals.data import Data, chosen, load, missing_field
from dsv4.evals.kept import LOGS, KeptAnswer, RunFolder
from dsv4.evals.result import NO_COUNTS
from dsv4.evals.suite import Ask, Generate, Item, Mode, Suite, estimated_tokens

if TYPE_CHECKING:
    from dsv4.evals.client import Client

PILOT = 4  # answers from which a dry run estimates
_MARKUP = 64  # tokens around a conversation
_BYTES = 2  # of a prompt for a token, at least: tokenizers have 3 or 4 in most texts
_LONG_TOKEN = 8  # letters of English for a token, at most
_LEAST = 1024  # tokens of an answer after a prompt that fills the window


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """What a user wants of a run. place: where the rows come from, see `data.load`. samples, temperature, max_tokens:
    None = the suite's. limit: items, None = all. since, until: dates of items, "" = any. Raises ValueError naming the
    flag."""

    suite: Suite
    mode: Mode = Mode.HIGH
    place: str = ""
    samples: int | None = None
    limit: int | None = None
    seed: int = 0
    concurrency: int = 8
    lengths: tuple[int, ...] = ()
    since: str = ""
    until: str = ""
    max_tokens: int | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        for flag, value in (("samples", self.samples), ("limit", self.limit), ("max-tokens", self.max_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"--{flag} must be at least 1, got {value}")
        if not 1 <= self.concurrency <= 4096:
            raise ValueError(f"--concurrency must be in [1, 4096], got {self.concurrency}")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ValueError(f"--temperature must be in [0, 2], got {self.temperature}")
        if any(length < 1 for length in self.lengths):
            raise ValueError(f"--lengths must be at least 1, got {min(self.lengths)}")

    @property
    def warmth(self) -> float:
        """The temperature."""
        return self.suite.temperature if self.temperature is None else self.temperature

    @property
    def budget(self) -> int:
        """Tokens of an answer at most; of prompt and answer together where neither user nor suite has a limit."""
        return self.max_tokens or self.suite.budget(self.mode)


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """The items of a run and how often each is asked."""

    settings: EvalSettings
    data: Data
    items: tuple[Item, ...]
    samples: int

    @property
    def wanted(self) -> list[tuple[Item, int]]:
        """Every answer of the run: the first of each item, then the second ones."""
        return [(item, sample) for sample in range(self.samples) for item in self.items]

    def identity(self, model: str, grader: str) -> dict[str, Any]:
        """What two halves of one run must agree in. items: the checksum of everything that is asked."""
        own = self.settings
        text = json.dumps([asdict(item) for item in self.items], sort_keys=True, ensure_ascii=False)
        return {
            "suite": own.suite.name,
            "mode": own.mode.value,
            "model": model,
            "data": {"origin": self.data.origin, "revision": self.data.revision, "sha256": self.data.sha256},
            "count": len(self.items),
            "samples": self.samples,
            "seed": own.seed,
            "temperature": own.warmth,
            "max_tokens": own.budget,
            "grader": grader,
            "items": hashlib.sha256(text.encode()).hexdigest(),
        }

    def room(self, item: Item, context: int | None) -> int:
        """Tokens of an answer at most: the suite's or the user's limit, else what the window of the mode has beside
        the prompt; and not more than the context of the endpoint has."""
        own, text = self.settings, json.dumps([item.messages, item.tools], ensure_ascii=False)
        prompt = len(text.encode()) // _BYTES + _MARKUP
        budget = own.budget
        if own.max_tokens is None and own.suite.max_tokens is None:
            budget = max(_LEAST, budget - prompt)
        return budget if context is None else max(1, min(budget, context - prompt))


def make_plan(settings: EvalSettings, count_tokens: Callable[[str], int] = estimated_tokens) -> EvalPlan:
    """Load the rows and make items of them. count_tokens: of a text of the model. Raises ValueError."""
    suite = settings.suite
    generate = Generate(settings.seed, settings.limit, settings.lengths, count_tokens=count_tokens)
    data = load(suite, settings.place, generate, since=settings.since, until=settings.until)
    places, items = chosen(data.rows, settings.limit, settings.seed), list[Item]()
    try:
        for i in places:
            items.append(suite.item(data.rows[i], Ask(settings.mode, settings.seed, i)))
    except KeyError as error:
        raise missing_field(data, error, suite) from None
    except (TypeError, AttributeError, ValueError, IndexError) as error:  # a field of another kind than published
        row = places[len(items)] + 1
        raise ValueError(f"--data: row {row} of {data.origin} is no row of {suite.name}: {error}") from error
    if len({item.id for item in items}) < len(items):
        raise ValueError(f"two items of {suite.name} from {data.origin} have one id")
    return EvalPlan(settings, data, tuple(items), settings.samples or suite.samples)


def early_plan(settings: EvalSettings) -> EvalPlan | None:
    """The plan where it needs no tokenizer. Where texts of chosen lengths are made, None, after the shortest of them
    with fewer tokens than any tokenizer makes. So nearly all that is wrong is told before a model is asked. Raises
    ValueError."""
    if not settings.suite.by_length or settings.place not in ("", "generated"):
        return make_plan(settings)
    shortest = (min(settings.lengths),) if settings.lengths else ()
    first = replace(settings, lengths=shortest, limit=1, place=settings.place if shortest else "stand-in")
    make_plan(first, lambda text: len(text) // _LONG_TOKEN)
    return None


@dataclass(slots=True)
class EvalProgress:
    """How far a run is. total: answers of the whole run. before: those that were there when it started. Of those since,
    counted: the ones that came with a count of their tokens, which are `tokens` in all; prompts_counted and
    prompt_tokens: the same of prompts. cut: ended by their limit."""

    total: int
    before: int
    done: int = 0
    value: float = 0.0
    counted: int = 0
    tokens: int = 0
    prompts_counted: int = 0
    prompt_tokens: int = 0
    cut: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, answer: KeptAnswer) -> None:
        """Count one more answer."""
        one = answer.graded
        self.done += 1
        self.value += one.value
        if one.tokens is not None:
            self.counted += 1
            self.tokens += one.tokens
        if one.prompt_tokens is not None:
            self.prompts_counted += 1
            self.prompt_tokens += one.prompt_tokens
        self.cut += one.finish == "length"

    @property
    def seconds(self) -> float:
        """Since the run started or went on."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float | None:
        """Tokens of answers in a second; None where the server does not count all of them."""
        return self.tokens / max(self.seconds, 1e-9) if self.counted == self.done else None

    @property
    def left(self) -> float:
        """Seconds until the end at the rate so far. At least one answer must be there."""
        return self.seconds / self.done * (self.total - self.before - self.done)


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Of a million tokens of prompts and of answers, in the user's currency."""

    prompt: float
    answer: float

    @classmethod
    def from_text(cls, text: str) -> "TokenPrice":
        """`0.14,0.28`. Raises ValueError."""
        try:
            prompt, answer = (float(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"--price must be PROMPT,ANSWER for a million tokens each, got {text!r}") from None
        if not (0 <= prompt < math.inf and 0 <= answer < math.inf):
            raise ValueError(f"--price must be at least 0, got {text!r}")
        return cls(prompt, answer)

    def of(self, prompt_tokens: float, tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + tokens * self.answer) / 1e6


def estimate(progress: EvalProgress, price: TokenPrice | None) -> str:
    """What the rest of a run costs, from the answers so far."""
    left = progress.total - progress.before - progress.done
    begun, minutes = f"estimate from {progress.done} answers: {left:,} more", f"{progress.left / 60:,.1f} minutes"
    prompt = progress.prompt_tokens / progress.prompts_counted if progress.prompts_counted else None
    tokens = progress.tokens / progress.counted if progress.counted else None
    if prompt is None and tokens is None:
        what = "tokens" if price is None else "tokens and cost"
        return f"{begun}, {minutes}; {what} unknown: {NO_COUNTS}"
    each = " + ".join(
        f"{'unknown' if count is None else f'{count:,.0f}'} {name}"
        for name, count in (("prompt", prompt), ("answer", tokens))
    )
    rate = "" if progress.rate is None else f" at {progress.rate:,.0f} tokens/s"
    cost = ""
    if price is not None and (prompt is None or tokens is None):
        cost = ", cost unknown: the server counts only one of the two"
    elif price is not None and prompt is not None and tokens is not None:
        cost = f", {_amount(price.of(left * prompt, left * tokens))} at the price given"
    return f"{begun} x ({each}) tokens, {minutes}{rate}{cost}"


def _amount(money: float) -> str:
    return f"{money:,.2f}" if money >= 0.01 or not money else "less than 0.01"


def ask(
    plan: EvalPlan,
    folder: RunFolder,
    client: "Client",
    context: int | None,
    *,
    judge: "Client | None" = None,
    most: int | None = None,
    show: Callable[[EvalProgress], None] = lambda progress: None,
) -> tuple[EvalProgress, list[str]]:
    """Ask for the answers that the folder lacks, `most` of them at most. Gives the progress, and why answers could not
    be had. context: tokens of the endpoint, None = unknown. Raises KeyboardInterrupt, and ValueError without
    inspect-ai."""
    from dsv4.evals.task import Asking, ask_all

    done = folder.done()
    wanted = [(item, sample) for item, sample in plan.wanted if (item.id, sample) not in done]
    progress = EvalProgress(len(plan.wanted), len(done))

    def take(answer: KeptAnswer) -> None:
        folder.add(answer)
        progress.add(answer)
        show(progress)

    own = plan.settings
    rooms = {item.id: plan.room(item, context) for item in plan.items}
    asking = Asking(own.suite, own.mode, own.seed, own.warmth, own.concurrency, lambda item: rooms[item.id], judge)
    if not wanted:
        return progress, []
    return progress, ask_all(asking, client, wanted[:most], str(folder.folder / LOGS), take)


def pilot(settings: EvalSettings) -> EvalSettings:
    """The settings with the concurrency of a pilot."""
    return replace(settings, concurrency=min(PILOT, settings.concurrency))
