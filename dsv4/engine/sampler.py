"""Choosing a token from one row of logits. Each request draws from its own generator, so its neighbours in the batch
do not change what it says.

V vocabulary.
"""

import torch
from torch import Tensor

from dsv4.generation import SamplingParams, TokenLogprobs


def sample(logits_V: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """A token id. Temperature 0 takes the largest logit (the lowest id on ties); otherwise the released rule:
    probabilities divided by Exponential(1) noise, argmax, after top-p has cut the tail."""
    if params.temperature == 0:
        return int(logits_V.argmax())
    probability_V = (logits_V / max(params.temperature, 1e-5)).softmax(dim=0)
    if params.top_p < 1:
        probability_V = _nucleus(probability_V, params.top_p)
    noise_V = torch.empty_like(probability_V).exponential_(1, generator=generator)
    return int((probability_V / noise_V).argmax())


def _nucleus(probability_V: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens that reaches `top_p`; the most likely one always stays."""
    sorted_V, order_V = probability_V.sort(descending=True, stable=True)
    before_V = sorted_V.cumsum(0) - sorted_V
    return probability_V.index_fill(0, order_V[before_V >= top_p], 0.0)


def logprobs_of(logits_V: Tensor, token: int, top: int) -> TokenLogprobs:
    """Log-probabilities at temperature 1 of the chosen token and the `top` best."""
    log_V = logits_V.log_softmax(dim=0)
    best = log_V.topk(top) if top else None
    pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
    return TokenLogprobs(float(log_V[token]), pairs)
