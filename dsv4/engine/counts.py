"""The counters of an engine."""

from dataclasses import dataclass


@dataclass(slots=True)
class EngineCounts:
    """Counts since the engine was made, for the metrics page. drafted: tokens that steps checked; accepted: those of
    them that are in the text. seconds: the time inside steps."""

    requests: int = 0
    ended: int = 0
    failed: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    preempted: int = 0
    seconds: float = 0.0
