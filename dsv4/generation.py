"""The narrow waist: all that server, evaluation and post-training know of an engine.

Tokens go in, tokens and log-probabilities come out. Standard library only, so importing it never loads torch.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

LOWEST_BIAS = -100.0
"""The lowest bias of a token, as in OpenAI's interface; beside the logits of models it is minus infinity."""


class ContextLengthError(ValueError):
    """A prompt that leaves no room for an answer. Carries both numbers."""

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        super().__init__(f"the prompt has {prompt_tokens} tokens, the context holds {context_length}")
        self.prompt_tokens, self.context_length = prompt_tokens, context_length


class BusyError(RuntimeError):
    """Too many requests are waiting already; nothing was queued. `waiting`: how many."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again later")
        self.waiting = waiting


class FinishReason(StrEnum):
    """Why a completion ended. Every request ends in exactly one of these."""

    STOP = "stop"  # an end token, a stop id or a stop string
    LENGTH = "length"  # max_tokens or the context limit
    ABORT = "abort"  # cancelled by the caller, or its deadline passed (then Completion.error says so)
    ERROR = "error"  # the engine failed; Completion.error says why


class TokenConstraint(Protocol):
    """One running answer that must follow a grammar. Stateful: one object per answer."""

    def allowed(self) -> bytes | None:
        """Which tokens may come next: bit i % 8 of byte i // 8 is token i, None = any. Never all zero."""
        ...

    def accept(self, token: int) -> None:
        """The token that was chosen."""
        ...


class ConstraintFactory(Protocol):
    """A grammar, ready to start answers."""

    def start(self) -> TokenConstraint: ...


@runtime_checkable
class WrittenGrammar(ConstraintFactory, Protocol):
    """A grammar that can be written down, for an engine that is another program. trigger: the token after which it
    begins, None = at once."""

    @property
    def trigger(self) -> int | None: ...

    def at_once(self) -> "WrittenGrammar":
        """The same grammar without a trigger."""
        ...

    def source(self) -> tuple[str, str]:
        """Its kind, `json` (a JSON schema) or `lark` (llguidance's form of Lark; `<[5]>` is token 5), and its text.
        Raises ValueError if it cannot be written down."""
        ...


@dataclass(frozen=True, slots=True)
class ConstraintStage:
    """A part of an answer. until: the token that ends the part, None = the answer's end does. most: after so many
    tokens `until` follows in any case, None = no limit. banned: tokens that it cannot hold. grammar: what it follows,
    None = nothing."""

    until: int | None = None
    most: int | None = None
    banned: tuple[int, ...] = ()
    grammar: ConstraintFactory | None = None


@runtime_checkable
class StagedConstraint(Protocol):
    """A constraint that is a sequence of parts, so that an engine without it can be asked for one after another."""

    def start(self) -> TokenConstraint: ...

    def stages(self) -> tuple[ConstraintStage, ...]:
        """The parts in order; at least one."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen: bias, penalties and constraint change the logits; then temperature, top-k, top-p, min-p.

    temperature: 0 means greedy; otherwise logits are divided by it (0..2).
    top_p: keep the smallest set of tokens whose probability reaches it (0 < top_p <= 1).
    top_k: keep the k most likely tokens; 0 keeps all.
    min_p: keep tokens at least this fraction as likely as the most likely one (0 <= min_p <= 1).
    presence_penalty, frequency_penalty: subtracted from the logit of a token said already, once or per time (-2..2).
    logit_bias: (token id, added to its logit) pairs, each -100..100.
    constraint: a grammar the answer must follow.
    seed: None draws one from the operating system; a fixed seed gives the same text. The random numbers of a token
        depend on the seed and its position in the sequence alone: a prompt that ends with the beginning of an answer,
        with the same seed, is continued as that answer went on.
    stop_ids: token ids that end the completion (not part of the output text).
    ignore_eos: neither these nor the model's own end tokens are sampled, so the completion has `max_tokens` tokens
        unless its constraint allows nothing else.
    top_logprobs: alternatives recorded per token (0..20); only with `logprobs`.
    trace: events carry what the model chose inside (experts, compressed entries, ids left by truncation).

    Raises ValueError naming the field and its allowed range.
    """

    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: ConstraintFactory | None = None
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    trace: bool = False
    ignore_eos: bool = False

    def without_ends(self, ends: Iterable[int]) -> "SamplingParams":
        """The parameters as they are sampled with: `ignore_eos` as biases. ends: the model's end tokens."""
        if not self.ignore_eos:
            return self
        # as in llama.cpp; vLLM samples them and goes on, but what follows an end token is no text of the model
        banned = {*ends, *self.stop_ids}
        own = [pair for pair in self.logit_bias if pair[0] not in banned]
        return replace(self, logit_bias=(*own, *((token, LOWEST_BIAS) for token in sorted(banned))))

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "top_logprobs", "seed"):
            value = getattr(self, name)
            if not _whole(value) and not (name == "seed" and value is None):
                raise ValueError(f"{name} must be an integer, got {shown(value)}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not _number(value):
                raise ValueError(f"{name} must be a number, got {shown(value)}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], got {shown(value)}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {shown(self.max_tokens)}")
        if not _number(self.top_p):
            raise ValueError(f"top_p must be a number, got {shown(self.top_p)}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {shown(self.top_p)}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {shown(self.top_k)}")
        if not 0 <= self.top_logprobs <= 20:
            raise ValueError(f"top_logprobs must be in [0, 20], got {shown(self.top_logprobs)}")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=True")
        self._check_ids()

    def _check_ids(self) -> None:
        """What names tokens. Whether they are in the vocabulary is for the engine to say, which knows it."""
        for pair in self.logit_bias:
            if not (isinstance(pair, tuple | list) and len(pair) == 2 and _whole(pair[0]) and _number(pair[1])):
                raise ValueError(f"logit_bias must be pairs of a token id and a number, got {shown(pair)}")
            token, bias = pair
            if not LOWEST_BIAS <= bias <= 100.0:
                raise ValueError(f"logit_bias must be in [-100, 100], got {shown(bias)} for token {shown(token)}")
        for token in self.stop_ids:
            if not _whole(token):
                raise ValueError(f"stop_ids must be integers, got {shown(token)}")
        if self.constraint is not None and not callable(getattr(self.constraint, "start", None)):
            raise ValueError(f"constraint must have start(), got {shown(self.constraint)}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A wrong value as an error message has it: cut, because a client may have sent megabytes of it."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a very large number"
    return text if len(text) <= 60 else f"{text[:50]}..."


_RANGES = {
    "temperature": (0, 2),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}


RECENT_POINTS = 3  # cache points before the end of a prompt


def points_to_keep(borders: Sequence[int]) -> tuple[int, ...]:
    """The cache points of a prompt whose messages end at these positions: the end of system and tools, and the last
    few."""
    return tuple(dict.fromkeys([*borders[:1], *borders[-RECENT_POINTS:]]))


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a caller may say about a request besides its tokens.

    owner: whose prefixes it may reuse and leaves behind; owners never share.
    cache_points: prompt positions (token counts) where a later prompt is likely to branch off: message boundaries.
    priority: -10..10; one step more goes before requests that came up to PRIORITY_STEPS engine steps earlier.
    deadline: seconds after submission at which it is ended with `abort`; None = never.
    progress: whether events tell how far the prompt is.
    keep: whether later requests may reuse its prefixes.
    label: the caller's name for it, as reports of the engine show it.

    Raises ValueError naming the field and its range.
    """

    owner: str = ""
    cache_points: tuple[int, ...] = ()
    priority: int = 0
    deadline: float | None = None
    progress: bool = False
    keep: bool = True
    label: str = ""

    def __post_init__(self) -> None:
        for name in ("owner", "label"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a string, got {shown(getattr(self, name))}")
        if not all(map(_whole, self.cache_points)):
            raise ValueError(f"cache_points must be integers, got {shown(self.cache_points)}")
        if not _whole(self.priority) or not -10 <= self.priority <= 10:
            raise ValueError(f"priority must be in [-10, 10], got {shown(self.priority)}")
        if self.deadline is not None and not (_number(self.deadline) and self.deadline > 0):
            raise ValueError(f"deadline must be more than 0 seconds, got {shown(self.deadline)}")


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a model's generation_config.json recommends where a request says nothing; ranges as in SamplingParams.
    example_prompts: what its makers suggest to ask."""

    temperature: float = 1.0
    top_p: float = 1.0
    example_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        SamplingParams(temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of the chosen token and of the most likely ones, at temperature 1."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What the model chose inside while it computed some positions, so that training can repeat it.

    first: the position of the first one. experts: by layer, the ids of the experts of each position. entries: by CSA
    layer, the compressed entries that each position read, without padding. kept: for each position, the ids among
    which the next token was chosen; None where all could be, or nothing was chosen. masses: for each position, the
    log-probability at temperature 1 of all kept ids together; 0 where `kept` is None. Positions that came from the
    prefix cache were not computed and are in no trace of this request.
    """

    first: int
    experts: Mapping[int, Sequence[Sequence[int]]]
    entries: Mapping[int, Sequence[Sequence[int]]]
    kept: Sequence[Sequence[int] | None]
    masses: Sequence[float] = ()

    @property
    def last(self) -> int:
        """One past the last position."""
        return self.first + len(self.kept)


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How far a prompt is: `done` of `total` tokens, `reused` of them from the prefix cache; `eta`: seconds to go, None
    while not known; `seconds`: since the engine began with it, None if it does not tell."""

    done: int
    total: int
    reused: int
    eta: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of one completion: a token, or the end (then `finish` is set and `token` may be None), or, where asked
    for, progress on the prompt (then only `progress` is set). `reused`: prompt tokens that came from the prefix cache,
    on the first token. `trace`: of the positions computed since the event before, where asked for. `version`: that of
    the weights that chose the token; None where the engine does not say. draft: the token that was drafted for this
    place, None without a draft; it was accepted if it is `token`."""

    token: int | None
    finish: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    progress: PromptProgress | None = None
    reused: int | None = None
    trace: TokenTrace | None = None
    version: int | None = None
    # drafts change no answer, so events of engines with and without them are equal
    draft: int | None = field(default=None, compare=False)


@dataclass(slots=True, repr=False)
class Completion:
    """A whole answer: the tokens (without the end token), why it ended, and their log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason = FinishReason.LENGTH
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None
    reused: int = 0

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.tokens[:8])) + (", ..." if len(self.tokens) > 8 else "")
        parts = [f"{len(self.tokens)} tokens [{shown}]", f"finish={self.finish.value!r}", f"reused={self.reused}"]
        parts += [f"error={self.error!r}"] if self.error is not None else []
        return f"Completion({', '.join(parts)})"

    def add(self, event: TokenEvent) -> None:
        """Take one more event; the token that ends an answer by `stop` is not part of it."""
        if event.reused is not None:
            self.reused = event.reused
        if event.token is not None and event.finish is not FinishReason.STOP:
            self.tokens.append(event.token)
            if event.logprobs is not None:
                self.logprobs.append(event.logprobs)
        if event.finish is not None:
            self.finish, self.error = event.finish, event.error


@runtime_checkable
class TokenGenerator(Protocol):
    """What an engine offers. `context_length` is the largest prompt plus completion in tokens."""

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its answer."""
        ...

    def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncIterator[TokenEvent]:
        """Yield one event per token; the last event carries `finish`. Closing the iterator cancels the work.
        Raises ValueError for a prompt that cannot run (ContextLengthError when it is too long), BusyError when too many
        wait."""
        ...


@dataclass(frozen=True, slots=True)
class RequestReport:
    """One request in an engine. label, owner, priority: of its options. The other numbers are tokens. cached: in the
    cache, of prompt and answer; reused: of the prompt, from the prefix cache; limit: of the answer. drafts: that the
    next step checks; pages: that it holds."""

    label: str
    owner: str
    running: bool
    priority: int
    prompt: int
    cached: int
    reused: int
    generated: int
    limit: int
    drafts: int
    pages: int


@dataclass(frozen=True, slots=True)
class PrefixReport:
    """One kept prefix. parent: the place in the list of the longest kept prefix of it, None without one. snapshot:
    whether its windows are kept, so that nothing is computed again."""

    owner: str
    length: int
    pages: int
    snapshot: bool
    parent: int | None


@dataclass(frozen=True, slots=True)
class PoolReport:
    """Pages or slots. running: held by running requests; kept: by kept prefixes alone; `each`: bytes of one."""

    count: int
    free: int
    running: int
    kept: int
    each: int


@dataclass(frozen=True, slots=True)
class StreamingReport:
    """Experts that are read from files: those used and those of them that were not in memory, since the start; those in
    memory now; bytes read since the start."""

    used: int
    missed: int
    resident: int
    bytes_read: int


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The state of an engine between two steps. waiting requests are in the order of their admission. cache_bytes: of
    the cache's tensors by kind. experts: by layer, how many tokens each expert got since the start. steps: how steps
    are computed. speculates: whether it drafts tokens. streaming: None with all experts in memory."""

    requests: tuple[RequestReport, ...]
    prefixes: tuple[PrefixReport, ...]
    pages: PoolReport
    slots: PoolReport
    page_tokens: int
    cache_bytes: Mapping[str, int]
    experts: Mapping[int, Sequence[int]]
    steps: str
    speculates: bool
    streaming: StreamingReport | None = None


@runtime_checkable
class Reporting(Protocol):
    """What a TokenGenerator may offer besides: a report of its state."""

    async def report(self) -> EngineReport:
        """The state between two steps: it waits for the end of the running one."""
        ...


class WeightSink(Protocol):
    """Where new weights go: an engine in this process, or a server. Both calls are made by one trainer at a time."""

    @property
    def version(self) -> int:
        """The version of the weights that new tokens are chosen with."""
        ...

    async def publish(self, weights: Mapping[str, Any], version: int) -> None:
        """Replace parameters by name (tensors); returns when tokens are chosen with them. Raises ValueError for a name
        or a shape that the model does not have, and then changes nothing."""
        ...


def collect(events: Iterator[TokenEvent]) -> Completion:
    """Gather a stream of events into one Completion."""
    completion = Completion()
    for event in events:
        completion.add(event)
    return completion
