"""Metrics in the text format of Prometheus. The names are those of vLLM's dashboards with the prefix `dsv4_`."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)

# what each metric counts, by its name without `dsv4_`; counters of the engine are those of `EngineService.counters`
# and `RemoteGenerator.counters`
HELP = {
    "num_requests_running": "Requests that are being answered.",
    "num_requests_waiting": "Requests that wait for a place in the engine.",
    "prompt_tokens_total": "Tokens of prompts, cached ones included.",
    "generation_tokens_total": "Tokens of answers.",
    "cost_usd_total": "Cost of the answers at the prices of the server, in US dollars.",
    "prefix_cache_queries_total": "Tokens of prompts that were looked up in the prefix cache.",
    "prefix_cache_hits_total": "Tokens of prompts that came from the prefix cache.",
    "kv_cache_usage_perc": "Share of the cache pages in use, 0 to 1.",
    "request_success_total": "Answers by the reason of their end.",
    "http_responses_total": "HTTP responses by status.",
    "time_to_first_token_seconds": "Seconds from the arrival of a request to its first token, waiting included.",
    "time_per_output_token_seconds": "Seconds for a token after the first, averaged over each answer.",
    "e2e_request_latency_seconds": "Seconds from the arrival of a request to the end of its answer.",
    "engine_requests_total": "Requests that the engine took.",
    "engine_ended_total": "Requests that ended in the engine, for whatever reason.",
    "engine_failed_total": "Requests that ended by a fault of their own.",
    "engine_steps_total": "Steps of the engine.",
    "engine_prompt_tokens_total": "Tokens of prompts that the engine computed.",
    "engine_reused_tokens_total": "Tokens of prompts that the engine took from kept prefixes.",
    "engine_generated_tokens_total": "Tokens that the engine generated.",
    "engine_drafted_total": "Drafted tokens that steps checked.",
    "engine_accepted_total": "Drafted tokens that are in the text.",
    "engine_preempted_total": "Times that a running request gave up its place.",
    "engine_seconds_total": "Seconds inside steps.",
    "engine_failed_steps_total": "Steps that failed.",
    "engine_failing": "1 while steps fail one after another or the thread of the engine has ended, else 0.",
    "engine_running": "Requests that the engine computes.",
    "engine_waiting": "Requests that wait for a place in the engine.",
    "engine_weights_version": "Version of the weights; live updates raise it.",
    "engine_pages": "Pages of the cache.",
    "engine_pages_free": "Pages of the cache that are free.",
    "engine_slots": "Slots of the cache; each holds the fixed state of a sequence or of a kept prefix.",
    "engine_slots_free": "Slots of the cache that are free.",
    "engine_prefixes": "Prefixes that are kept in memory.",
    "engine_cache_bytes": "Bytes of memory that the cache has.",
    "engine_prefix_lookups_total": "Prompts that were looked up among the kept prefixes.",
    "engine_prefix_hits_total": "Prompts of which a beginning was kept.",
    "engine_prefix_hit_tokens_total": "Tokens of these beginnings.",
    "engine_prefix_recorded_total": "Prefixes that were kept.",
    "engine_prefix_evicted_total": "Kept prefixes that were given up for others.",
    "engine_disk_written_total": "Prefix files that were written.",
    "engine_disk_written_bytes_total": "Bytes of these files.",
    "engine_disk_read_bytes_total": "Bytes that were read from prefix files.",
    "engine_disk_corrupt_total": "Prefix files with a wrong checksum; they are deleted and never used.",
    "engine_disk_failed_writes_total": "Prefix files whose write failed.",
    "engine_disk_dropped_total": "Prefixes that were not written because the disk was too slow.",
    "engine_disk_evicted_total": "Prefix files that were deleted for others.",
    "engine_disk_off": "1 after an error of the disk: prefixes are kept in memory only until a restart; else 0.",
    "engine_remote_requests_total": "Requests to the servers behind this one.",
    "engine_remote_retries_total": "Requests that were sent again.",
    "engine_remote_lost_total": "Times that a server behind this one was lost.",
    "engine_remote_busy_total": "Refusals of servers behind this one because they were busy.",
    "engine_remote_engines": "Servers behind this one.",
    "engine_remote_engines_lost": "Servers behind this one that do not answer.",
}


def header(name: str, kind: str) -> list[str]:
    """The lines before the values of a metric. name: without `dsv4_`; a counter that HELP lacks has no text."""
    described = [f"# HELP dsv4_{name} {HELP[name]}"] if name in HELP else []
    return [*described, f"# TYPE dsv4_{name} {kind}"]


@dataclass(slots=True)
class Histogram:
    """Counts of values by upper bound."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        """The metric `dsv4_NAME` on the page."""
        lines, seen = header(name, "histogram"), 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            seen += count
            lines.append(f'dsv4_{name}_bucket{{le="{bound}"}} {seen}')
        return [*lines, f"dsv4_{name}_sum {self.total}", f"dsv4_{name}_count {seen}"]


@dataclass(slots=True)
class Metrics:
    """Totals since the start. cost: in US dollars; finished: answers by finish reason; refused: requests by status."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    cost: float = 0.0
    finished: Counter[str] = field(default_factory=Counter)
    responses: Counter[str] = field(default_factory=Counter)
    first_token: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    per_token: Histogram = field(default_factory=lambda: Histogram(STEP_SECONDS))
    whole: Histogram = field(default_factory=lambda: Histogram(SECONDS))

    def text(self, running: int, counters: Mapping[str, float]) -> str:
        """The page. running: answers that are being generated; counters: of the engine, under their own names."""
        values: dict[str, float] = {
            "num_requests_running": counters.get("running", running),
            "num_requests_waiting": counters.get("waiting", 0),
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generation_tokens,
            "cost_usd_total": self.cost,
            "prefix_cache_queries_total": self.prompt_tokens,
            "prefix_cache_hits_total": self.cached_tokens,
        }
        if pages := counters.get("pages"):
            values["kv_cache_usage_perc"] = 1 - counters.get("pages_free", 0) / pages
        values |= {f"engine_{name}": value for name, value in counters.items()}
        lines: list[str] = []
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [*header(name, kind), f"dsv4_{name} {value}"]
        for name, label, counts in (
            ("request_success_total", "finished_reason", self.finished),
            ("http_responses_total", "status", self.responses),
        ):
            lines += header(name, "counter")
            lines += [f'dsv4_{name}{{{label}="{key}"}} {count}' for key, count in sorted(counts.items())]
        lines += self.first_token.lines("time_to_first_token_seconds")
        lines += self.per_token.lines("time_per_output_token_seconds")
        lines += self.whole.lines("e2e_request_latency_seconds")
        return "\n".join(lines) + "\n"
