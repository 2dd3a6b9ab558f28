"""The engine of a model: continuous batching over a paged cache of its own."""

import time
from collections.abc import Callable

from torch import Tensor

from dsv4.cache import CacheDtype, CacheStore
from dsv4.cache.disk import DiskTier
from dsv4.cache.format import default_cache_dtype
from dsv4.cache.manager import CacheManager
from dsv4.cache.prefix import ReusePolicy
from dsv4.engine.batching import ContinuousBatching
from dsv4.engine.request import Request
from dsv4.engine.runner import Runner
from dsv4.kernels.native.places import ThreadPlaces
from dsv4.model.transformer import Transformer


class Engine(ContinuousBatching):
    """Continuous batching of one model over a paged cache.

    context_length: the largest prompt plus completion. cache_tokens: source tokens of all running sequences and kept
    prefixes together (default: a full context for each sequence; memory is committed only when it is written).
    sequences: the largest number of running requests. step_tokens: the token budget of one step; a longer prompt is
    prefilled in chunks, and the other requests decode in the same steps. cache_dtype: the format of cached rows
    (default: the activation dtype of the model, `release` for a model in release numerics). reuse: the policy of kept
    prefixes. disk: keeps prefixes beyond the life of the process. speculate: in each step the draft head drafts up to a
    block of tokens, or the prediction block one. lookup: up to so many tokens are drafted by looking up what the
    request said before; 0 turns it off. queue: the largest number of waiting requests. sampled_vocabulary: ids
    from here on are never sampled, because the model has more rows than its tokenizer has tokens (None = all may be
    sampled). fused: as in Runner. observer: called with each request and its row of logits before a token is sampled.
    slowdown: a step in which requests decode computes only so many prompt tokens that it takes at most this many times
    as long as without them (above 1; steps of up to 5 ms are not limited), and prompts take longer; None = only
    `step_tokens` limits prompts. places: where the threads of a fused step run.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        context_length: int,
        cache_tokens: int | None = None,
        sequences: int = 8,
        step_tokens: int = 512,
        cache_dtype: CacheDtype | None = None,
        reuse: ReusePolicy | None = None,
        disk: DiskTier | None = None,
        speculate: bool = False,
        lookup: int = 0,
        queue: int = 1024,
        sampled_vocabulary: int | None = None,
        fused: bool | None = None,
        observer: Callable[[Request, Tensor], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        slowdown: float | None = None,
        places: ThreadPlaces | None = None,
    ) -> None:
        if not 1 <= context_length <= model.config.max_position_embeddings:
            raise ValueError(
                f"context_length must be in [1, {model.config.max_position_embeddings}], got {context_length}"
            )
        for name, value in (("sequences", sequences), ("step_tokens", step_tokens), ("queue", queue)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        rows = model.config.vocab_size
        if sampled_vocabulary is not None and not 1 <= sampled_vocabulary <= rows:
            raise ValueError(f"sampled_vocabulary must be in [1, {rows}], got {sampled_vocabulary}")
        if speculate and not model.mtp:
            raise ValueError(
                "speculate needs a model with a prediction block or a draft head (num_nextn_predict_layers is 0, and "
                "there are no dspark_* keys)"
            )
        self.model = model
        policy = reuse or ReusePolicy()
        store = CacheStore(
            model.config,
            cache_dtype or default_cache_dtype(model),
            tokens=max(cache_tokens or sequences * context_length, context_length),
            slots=sequences + policy.snapshots,
            device=model.device,
            drafts=lookup,
        )
        super().__init__(
            model.config,
            CacheManager(store, policy, disk),
            Runner(model, store, predict=speculate, lookup=lookup, fused=fused, places=places),
            context_length=context_length,
            sequences=sequences,
            step_tokens=step_tokens,
            queue=queue,
            sampled_vocabulary=sampled_vocabulary,
            observer=observer,
            clock=clock,
            slowdown=slowdown,
        )
