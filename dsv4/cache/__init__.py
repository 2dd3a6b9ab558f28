"""Memory of running sequences: what grows lies in pages, what is fixed lies in slots (report 5.2, figure 6)."""

from dsv4.cache.format import CacheDtype, RowFormat
from dsv4.cache.layers import Place, StepCache
from dsv4.cache.pages import OutOfCacheError, Pool
from dsv4.cache.spec import PAGE_TOKENS, CacheSpec
from dsv4.cache.store import CacheStore

__all__ = [
    "PAGE_TOKENS",
    "CacheDtype",
    "CacheSpec",
    "CacheStore",
    "OutOfCacheError",
    "Place",
    "Pool",
    "RowFormat",
    "StepCache",
]
