"""One rollout while it grows. What happens to it goes through one method, which logs it first, so a trajectory read
back from a log is the one that was interrupted.
"""

from collections.abc import Iterator, Sequence

from dsv4.generation import FinishReason, TokenEvent
from dsv4.posttraining.environment import More, Verdict
from dsv4.posttraining.traces import TracePieces
from dsv4.posttraining.types import Prompt, Rollout
from dsv4.posttraining.wal import Ended, Entry, Recovered, RolloutLog, SampledToken, TokenTrace, prompt_checksum


class Trajectory:
    """all: the prompt's tokens and everything after them. sampled, logprobs, versions: of what comes after, as in
    Rollout. finish: why the policy's turn ended; None while it speaks. verdict: set when the rollout has ended.

    recovered: what a log has of it. Raises ValueError where that is of another prompt.
    """

    def __init__(self, prompt: Prompt, index: int, recovered: Recovered | None, journal: RolloutLog | None) -> None:
        self.prompt, self.index = prompt, index
        self.all = list(prompt.tokens)
        self.sampled: list[bool] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.finish: FinishReason | None = None
        self.ended: FinishReason | None = None
        self.verdict: Verdict | None = None
        self.pieces = TracePieces(self.all)
        self._begin = 0  # of the turn, among the tokens after the prompt
        self._turns: list[tuple[int, int, More]] = []
        self._journal, self._number = journal, -1
        if recovered is not None and recovered.prompt != prompt_checksum(prompt.tokens):
            where = journal.path if journal is not None else "the log"
            raise ValueError(f"{where}: prompt {prompt.key} had other tokens when it was logged; remove the log")
        if recovered is not None:
            self._number = recovered.number
            for entry in recovered.entries:
                self._apply(entry)

    @property
    def turn(self) -> list[int]:
        """The tokens of the policy's current turn."""
        return self.all[len(self.prompt.tokens) + self._begin :]

    def turns(self) -> Iterator[tuple[Sequence[int], More]]:
        """The turns before the current one, and what the environment said to each."""
        said = self.all[len(self.prompt.tokens) :]
        for begin, end, more in self._turns:
            yield said[begin:end], more

    def take(self, event: TokenEvent, version: int) -> None:
        """One event of a generator. Raises RuntimeError where it lacks the log-probability or fits nowhere."""
        entries: list[Entry] = []
        mass, kept = 0.0, None
        if event.trace is not None:
            entries.append(event.trace)
            at = len(self.all) - 1 - event.trace.first
            if event.token is not None and 0 <= at < len(event.trace.kept):
                kept, mass = event.trace.kept[at], event.trace.masses[at] if event.trace.masses else 0.0
        if event.token is not None:
            if event.logprobs is None:
                raise RuntimeError("the engine gives no log-probabilities")
            logprob = event.logprobs.chosen - mass
            version = version if event.version is None else event.version
            entries.append(SampledToken(event.token, logprob, version, event.finish, kept, mass))
        elif event.finish is not None:
            entries.append(Ended(event.finish))
        self._do(*entries)

    def insert(self, more: More) -> None:
        """What the environment says to the turn; the next turn begins."""
        self._do(more)

    def cut(self) -> None:
        """The turn ends because there is no room for more."""
        self._do(Ended(FinishReason.LENGTH))

    def end(self, finish: FinishReason, verdict: Verdict) -> None:
        """The rollout ends."""
        self._do(Ended(finish, verdict))

    def rollout(self, trace: TokenTrace | None, error: str | None = None) -> Rollout:
        """The finished value; with an error it has no reward."""
        assert self.verdict is not None
        assert self.ended is not None
        return Rollout(
            prompt=self.prompt,
            tokens=tuple(self.all[len(self.prompt.tokens) :]),
            sampled=tuple(self.sampled),
            logprobs=tuple(self.logprobs),
            versions=tuple(self.versions),
            finish=self.ended,
            reward=self.verdict.reward if error is None else None,
            metrics=self.verdict.metrics,
            error=self.verdict.error or error,
            trace=trace,
        )

    def _do(self, *entries: Entry) -> None:
        if self._journal is not None:
            if self._number < 0:
                self._number = self._journal.begin(self.prompt.key, self.index, self.prompt.tokens)
            self._journal.append(self._number, *entries)
        for entry in entries:
            self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        match entry:
            case SampledToken():
                if entry.kept is not None:
                    self.pieces.kept[len(self.all) - 1] = (entry.kept, entry.mass)
                self._append(entry.token, entry.logprob, entry.version, sampled=True)
                self.finish = entry.finish
            case More(tokens):
                end = len(self.sampled)
                self._turns.append((self._begin, end, entry))
                for token in tokens:
                    self._append(token, 0.0, self.versions[-1] if self.versions else 0, sampled=False)
                self._begin, self.finish = len(self.sampled), None
            case TokenTrace():
                self.pieces.add(entry)
            case Ended(finish, None):
                self.finish = finish
            case Ended(finish, verdict):
                self.ended, self.verdict = finish, verdict

    def _append(self, token: int, logprob: float, version: int, *, sampled: bool) -> None:
        self.all.append(token)
        self.sampled.append(sampled)
        self.logprobs.append(logprob)
        self.versions.append(version)
