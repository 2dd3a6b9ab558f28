"""Memory of running sequences: what grows lies in pages, what is fixed lies in slots (report 5.2, figure 6)."""

from dsv4.cache.layers import StepCache
from dsv4.cache.pages import FreeList, OutOfCacheError
from dsv4.cache.spec import CacheSpec
from dsv4.cache.store import CacheStore

__all__ = ["CacheSpec", "CacheStore", "FreeList", "OutOfCacheError", "StepCache"]
