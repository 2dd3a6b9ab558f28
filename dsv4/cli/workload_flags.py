"""The flags of a workload, shared by the commands that send or simulate one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dsv4.workload.kinds import Kind

if TYPE_CHECKING:
    from dsv4.workload.kinds import Workload
    from dsv4.workload.timing import ServiceLimits
    from dsv4.workload.trace import Session

Repeated = Parameter(negative=())


@dataclass(frozen=True, slots=True)
class WorkloadFlags:
    """What is asked.

    Parameters
    ----------
    workload
        fixed: prompts of one length. prefix: behind a system prompt that all share. agent: conversations that grow by
        answers and results of tools. Default: fixed; of simulate agent.
    trace
        JSONL file of requests in place of a workload (docs/capacity.md), at its own times or at --rate or --users.
    rate
        Open loop: sessions that arrive a second (Poisson), whatever the server does; repeat the flag for several.
    users
        Closed loop: sessions at a time, each followed by the next; repeat the flag for several.
    requests
        The most requests at one level of load; of a trace its first ones. Default: 64; simulate takes a trace whole.
    input
        Tokens of a prompt, of an agent's first one; without those of the shared system prompt.
    output
        Tokens of an answer; of an agent's on average.
    shared
        Tokens of the system prompt that all sessions of prefix and agent share.
    turns
        Requests of an agent.
    tool
        Tokens of a tool's result on average.
    delay
        Seconds that a tool runs on average.
    speed
        Divide a trace's times by this.
    max_ttft
        Limit for goodput: seconds to the first token.
    max_tpot
        Limit for goodput: mean seconds of a token after the first.
    max_e2e
        Limit for goodput: seconds to the end of the answer.
    """

    workload: Kind | None = None
    trace: Path | None = None
    rate: Annotated[Sequence[float], Repeated] = ()
    users: Annotated[Sequence[int], Repeated] = ()
    requests: int | None = None
    input: int = 512
    output: int = 128
    shared: int = 2048
    turns: int = 8
    tool: int = 256
    delay: float = 0.0
    speed: float = 1.0
    max_ttft: float | None = None
    max_tpot: float | None = None
    max_e2e: float | None = None

    @property
    def most(self) -> int:
        """The most requests where nothing else is said."""
        return 64 if self.requests is None else self.requests

    def made(self, usual: Kind) -> "Workload":
        """The workload. usual: where no kind is given. Raises ValueError naming an argument and its range."""
        from dsv4.workload.kinds import Workload

        kind = self.workload or usual
        return Workload(kind, self.input, self.output, self.shared, self.turns, self.tool, self.delay)

    def limits(self) -> "ServiceLimits":
        """The limits for goodput. Raises ValueError naming an argument and its range."""
        from dsv4.workload.timing import ServiceLimits

        return ServiceLimits(self.max_ttft, self.max_tpot, self.max_e2e)

    def traced(self) -> "tuple[Session, ...]":
        """The sessions of the trace, of its first `requests` if that is given; none without one. Raises ValueError for
        one without times where they are needed."""
        if self.trace is None:
            return ()
        from dsv4.workload.trace import MOST_LINES, read_trace, sessions_of

        most = MOST_LINES if self.requests is None else max(1, self.requests)  # commands refuse less than 1
        sessions = tuple(sessions_of(read_trace(self.trace, most)))
        if not (self.rate or self.users) and any(session[0].at is None for session in sessions):
            raise ValueError(f"--trace {self.trace} has requests without a timestamp: give --rate or --users")
        return sessions
