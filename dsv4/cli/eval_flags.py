"""The flags of `dsv4 eval`: how it asks, and what remains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from dsv4.evals.run import EvalSettings
    from dsv4.evals.suite import Suite


@dataclass(frozen=True, slots=True)
class AskingFlags:
    """Which items are asked, and how.

    Parameters
    ----------
    mode
        How much the model thinks.
    data
        A file or folder with the data, hub, package, generated, or stand-in: a few items of ours, to try. Default: an
        installed package, or generated.
    samples
        Answers to each item. Default: as the suite says, mostly 1.
    limit
        Items, drawn at random with --seed. Default: all.
    seed
        Of everything that is drawn.
    concurrency
        Requests at once.
    lengths
        Tokens of the texts, for suites with long texts; repeat the flag for several.
    since
        First date of the items, YYYY-MM-DD, for suites with dates.
    until
        Last date of the items.
    max_tokens
        Of an answer. Default: the published budget of the mode (8K, 128K, 384K with the prompt), or the suite's.
    temperature
        Default: 1, as published, or the suite's.
    """

    mode: Literal["non-think", "high", "max"] = "high"
    data: str = ""
    samples: int | None = None
    limit: int | None = None
    seed: int = 0
    concurrency: int = 8
    lengths: Annotated[Sequence[int], Parameter(negative=())] = ()
    since: str = ""
    until: str = ""
    max_tokens: int | None = None
    temperature: float | None = None

    def settings(self, suite: "Suite") -> "EvalSettings":
        """For a suite. Raises ValueError naming the flag."""
        from dsv4.evals.run import EvalSettings
        from dsv4.evals.suite import Mode

        return EvalSettings(
            suite,
            Mode(self.mode),
            self.data,
            self.samples,
            self.limit,
            self.seed,
            self.concurrency,
            tuple(self.lengths),
            self.since,
            self.until,
            self.max_tokens,
            self.temperature,
        )


@dataclass(frozen=True, slots=True)
class OutcomeFlags:
    """Where a run lies, and what is told of it.

    Parameters
    ----------
    out
        Folder of the run. Default: runs/eval/SUITE-MODE-MODEL.
    compare
        Folder of another run of the suite, for a paired comparison; it does not change the exit code.
    least
        Score below which the exit code is 4.
    price
        Of a million tokens, PROMPT,ANSWER, for the estimate.
    dry_run
        Get four answers, print what the rest would cost, and stop.
    """

    out: Path | None = None
    compare: Path | None = None
    least: float | None = None
    price: str = ""
    dry_run: Annotated[bool, Parameter(negative=())] = False

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raise ValueError for a score that none can have, a folder that cannot hold a run, and one without a run to
        compare with. identity: of the run, as far as it is known."""
        from dsv4.evals.kept import check_kept
        from dsv4.evals.result import check_comparable

        if self.least is not None and not 0 <= self.least <= 100:
            raise ValueError(f"--least must be in [0, 100], got {self.least:g}")
        if self.compare is not None:
            check_comparable(identity, self.compare)
        if self.out is not None:
            check_kept(self.out, identity)
