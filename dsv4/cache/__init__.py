"""The memory of sequences: what grows with their length lies in pages, what has a fixed size lies in slots (report 5.2,
figure 6)."""

from dsv4.cache.allocator import Allocator, OutOfCacheError
from dsv4.cache.drafts import DraftCache
from dsv4.cache.format import CacheDtype, RowFormat
from dsv4.cache.layers import Place, StepCache
from dsv4.cache.spec import PAGE_TOKENS, CacheSpec
from dsv4.cache.store import CacheStore

__all__ = [
    "PAGE_TOKENS",
    "Allocator",
    "CacheDtype",
    "CacheSpec",
    "CacheStore",
    "DraftCache",
    "OutOfCacheError",
    "Place",
    "RowFormat",
    "StepCache",
]
