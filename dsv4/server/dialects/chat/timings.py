"""How far a prompt is and how fast an answer comes, in the fields of llama.cpp's server, whose pages show them.

`eta_ms` and `cost_usd` are additions of dsv4.
"""

from typing import Any

from dsv4.generation import PromptProgress
from dsv4.server.dialects.job import AnswerJob


def prompt_progress(progress: PromptProgress, job: AnswerJob) -> dict[str, Any]:
    """`processed` of `total` prompt tokens are in the cache, `cache` of them were there before the request.

    time_ms: since the request was accepted; eta_ms: until the first token, None while not known.
    """
    return {
        "total": progress.total,
        "cache": progress.reused,
        "processed": progress.done,
        "time_ms": _ms(job.seconds),
        "eta_ms": None if progress.eta is None else _ms(progress.eta),
    }


def timings(job: AnswerJob) -> dict[str, Any]:
    """Counts, times and speeds of the answer so far. The prompt's time ends with the first token and includes waiting;
    a speed is None where its time is zero or not over. Without drafts their counts are left out."""
    first = job.first_token_seconds
    prompt, predicted = len(job.prompt) - job.reused, len(job.tokens)
    writing = None if first is None else job.seconds - first
    return {
        "cache_n": job.reused,
        "prompt_n": prompt,
        "prompt_ms": None if first is None else _ms(first),
        "prompt_per_second": _speed(prompt, first),
        "predicted_n": predicted,
        "predicted_ms": None if writing is None else _ms(writing),
        # the first token belongs to the prompt's time
        "predicted_per_second": _speed(predicted - 1, writing),
        "cost_usd": round(job.cost, 9),
    } | ({"draft_n": job.drafted, "draft_n_accepted": job.accepted} if job.drafted else {})


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def _speed(tokens: int, seconds: float | None) -> float | None:
    return round(tokens / seconds, 2) if seconds and tokens > 0 else None
