"""Validation of a request before it is queued. It runs in the caller's thread, without the engine."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import index

from dsv4.engine.faults import fault_of
from dsv4.engine.sampler import Sampler
from dsv4.generation import RequestOptions, SamplingParams, shown


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises ValueError for an empty prompt, an id that is no integer, or an id outside the vocabulary."""
    if not len(tokens):
        raise ValueError("the prompt is empty")
    try:
        low, high = index(min(tokens)), index(max(tokens))
        wrong = None if all(type(token) is int for token in tokens) else _not_whole(tokens)
    except (TypeError, ValueError):
        raise ValueError("prompt token ids must be integers") from None
    if wrong is not None:
        raise ValueError(f"prompt token ids must be integers, got {wrong}")
    if low < 0 or high >= vocabulary:
        bad = next(token for token in tokens if not 0 <= token < vocabulary)
        raise ValueError(f"prompt token ids must be in [0, {vocabulary}), got {shown(bad)}")


def check_params(params: SamplingParams, vocabulary: int) -> None:
    """Raises ValueError naming the field for a token id outside the vocabulary."""
    for name, ids in (("logit_bias", [token for token, _ in params.logit_bias]), ("stop_ids", params.stop_ids)):
        bad = next((token for token in ids if not 0 <= token < vocabulary), None)
        if bad is not None:
            raise ValueError(f"{name} token ids must be in [0, {vocabulary}), got {shown(bad)}")


def start_sampler(params: SamplingParams, vocabulary: int, position: int, ends: Iterable[int]) -> Sampler:
    """The sampler of an answer whose first token has `position`; it also starts the grammar, which may take
    seconds. ends: tokens that end every answer. Raises ValueError if the grammar cannot be started."""
    try:
        return Sampler(params, vocabulary, position, ends)
    except BaseException as error:  # a process border: grammars of others may raise anything
        raise ValueError(f"constraint cannot be started: {fault_of(error)}") from error


def bounded(options: RequestOptions | None) -> RequestOptions:
    """The same options with a digest as the owner, because a client's text may be long and is stored as long as its
    prefixes."""
    options = options or RequestOptions()
    digest = hashlib.blake2b(options.owner.encode("utf-8", "surrogatepass"), digest_size=16)
    return replace(options, owner=digest.hexdigest())


def _not_whole(tokens: Sequence[int]) -> str | None:
    """The first id that is no integer; integers of numpy and of tensors are integers."""
    for token in tokens:
        try:
            index(token)
        except TypeError:
            return shown(token)
    return None
