"""The report of an engine's state: plain data for pages that show it. Made in the engine's turn, between two steps."""

from collections import Counter
from itertools import islice

from dsv4.cache import CacheStore
from dsv4.cache.prefix import CachedPrefix, PrefixCache
from dsv4.config import AttentionKind
from dsv4.engine.engine import Engine
from dsv4.engine.request import Request, RequestStatus
from dsv4.generation import EngineReport, PoolReport, PrefixReport, RequestReport, StreamingReport
from dsv4.kernels.moe.residency import expert_counts

# a page shows no more than these; with windows `none` there may be many thousands of prefixes
MOST_PREFIXES = 400


def report_of(engine: Engine) -> EngineReport:
    """The state of an engine that runs no step now. Takes time in proportion to its requests, the pages that they hold,
    and its kept prefixes."""
    store, prefixes = engine.cache.store, engine.cache.prefixes
    streamed = expert_counts()
    return EngineReport(
        requests=tuple(map(_request, engine.requests)),
        prefixes=_prefixes(prefixes),
        pages=_pool(
            store.pages.count,
            store.pages.free,
            len({page for request in engine.requests if request.place for page in request.place.pages}),
            store.spec.page_bytes(),
        ),
        slots=_pool(store.slots.count, store.slots.free, engine.running, store.spec.slot_bytes()),
        page_tokens=store.spec.page_tokens,
        cache_bytes=bytes_by_kind(store),
        experts=engine.runner.expert_uses(),
        steps=engine.runner.describe(),
        speculates=engine.runner.drafts,
        streaming=StreamingReport(streamed.taken, streamed.missed, streamed.resident, streamed.bytes_read)
        if streamed.resident or streamed.taken
        else None,
    )


def bytes_by_kind(store: CacheStore) -> dict[str, int]:
    """The bytes of the cache's tensors by what they hold."""
    found: Counter[str] = Counter()
    for layer in store.layers:
        found["window"] += layer.window_SWX.nbytes
        found["tails"] += sum(tail.nbytes for tail in layer.tails.values())
        if layer.entries_MX is not None:
            found["csa_entries" if layer.spec.kind is AttentionKind.CSA else "hca_entries"] += layer.entries_MX.nbytes
        if layer.index_MX is not None:
            found["indexer_keys"] += layer.index_MX.nbytes
    found["streams"] = store.streams_SRHD.nbytes
    return {name: size for name, size in found.items() if size}


def _pool(count: int, free: int, running: int, each: int) -> PoolReport:
    return PoolReport(count, free, running, count - free - running, each)


def _request(request: Request) -> RequestReport:
    return RequestReport(
        label=request.options.label,
        owner=request.options.owner,
        running=request.status is RequestStatus.RUNNING,
        priority=request.options.priority,
        prompt=request.prompt_length,
        cached=request.cached,
        reused=request.reused,
        generated=request.generated,
        limit=request.params.max_tokens,
        drafts=len(request.drafts),
        pages=len(request.place.pages) if request.place else 0,
    )


def _prefixes(prefixes: PrefixCache) -> tuple[PrefixReport, ...]:
    number: dict[CachedPrefix, int] = {}
    found: list[PrefixReport] = []
    for prefix, parent in islice(prefixes.tree(), MOST_PREFIXES):
        number[prefix] = len(found)
        above = None if parent is None else number[parent]
        found.append(PrefixReport(prefix.owner, prefix.length, len(prefix.pages), prefix.slot is not None, above))
    return tuple(found)
