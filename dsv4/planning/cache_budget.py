"""The division of a memory budget into pages, running sequences and snapshots, before anything is allocated."""

from dataclasses import dataclass

from dsv4.cache import CacheSpec
from dsv4.files import size_text


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The sizes that fit a budget. tokens: cached source tokens of all sequences and kept prefixes together."""

    tokens: int
    sequences: int
    snapshots: int
    bytes: int


def plan_cache(spec: CacheSpec, budget: int, *, context_length: int, sequences: int, snapshots: int) -> CachePlan:
    """Divide a budget: slots first, then pages for the rest, at most as many as all sequences and an equal number of
    kept prefixes need at full context.

    At most a third of the budget goes into snapshots. Raises ValueError naming both sizes when one sequence of
    `context_length` tokens does not fit.
    """
    slot, page = spec.slot_bytes(), max(1, spec.page_bytes())
    least = spec.total_bytes(spec.pages_for(context_length), 1)
    if least > budget:
        raise ValueError(
            f"one sequence of {context_length:,} tokens needs {size_text(least)} of cache, the memory budget is "
            f"{size_text(budget)}: raise --memory or lower --context"
        )
    spare = budget - least
    extra = min(sequences - 1, spare // 3 // slot)
    kept = min(snapshots, spare // 3 // slot)
    left = budget - (1 + extra + kept) * slot
    pages = min(left // page, 2 * sequences * spec.pages_for(context_length))
    return CachePlan(pages * spec.page_tokens, 1 + extra, kept, spec.total_bytes(pages, 1 + extra + kept))
