"""Metrics in the text format of Prometheus. The names are those of vLLM's dashboards with the prefix `dsv4_`."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


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
        lines, seen = [f"# TYPE {name} histogram"], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            seen += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {seen}')
        return [*lines, f"{name}_sum {self.total}", f"{name}_count {seen}"]


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
            lines += [f"# TYPE dsv4_{name} {kind}", f"dsv4_{name} {value}"]
        for name, label, counts in (
            ("request_success_total", "finished_reason", self.finished),
            ("http_responses_total", "status", self.responses),
        ):
            lines.append(f"# TYPE dsv4_{name} counter")
            lines += [f'dsv4_{name}{{{label}="{key}"}} {count}' for key, count in sorted(counts.items())]
        lines += self.first_token.lines("dsv4_time_to_first_token_seconds")
        lines += self.per_token.lines("dsv4_time_per_output_token_seconds")
        lines += self.whole.lines("dsv4_e2e_request_latency_seconds")
        return "\n".join(lines) + "\n"
