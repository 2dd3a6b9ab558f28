"""Sampling of a token from one row of logits. The random numbers of a token depend on the request's seed and on the
position of the token in its sequence. The batch therefore does not change a token, and an interrupted answer continues
with the same tokens.

Legend: V vocabulary.
"""

import hashlib
import math
import secrets
from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dsv4.engine.faults import SamplingError
from dsv4.generation import SamplingParams, TokenConstraint, TokenLogprobs


class Sampler:
    """The state of one answer: its random numbers, its tokens, and the state of its grammar.

    vocabulary: ids from here on are never sampled, because the model has more rows than its tokenizer has tokens (None
    = all may be sampled). position: of the first token to sample. ends: tokens that end every answer; where a grammar
    does not let the request's own end tokens come, these do not come either. kept, mass: of the last token, as in
    TokenTrace, if `params.trace` is set.
    """

    def __init__(
        self, params: SamplingParams, vocabulary: int | None = None, position: int = 0, ends: Iterable[int] = ()
    ) -> None:
        self._seed = (params.seed if params.seed is not None else secrets.randbits(63)) % 2**63
        self.params, self.generator, self._position = params, torch.Generator(), position
        self.kept: Sequence[int] | None = None
        self.mass = 0.0
        self._vocabulary = vocabulary
        self._said: dict[int, int] = {}
        self._constraint: TokenConstraint | None = params.constraint.start() if params.constraint else None
        most = math.inf if vocabulary is None else vocabulary
        self._stops = [token for token in params.stop_ids if token < most]
        self._other_ends = [token for token in ends if token < most and token not in self._stops]
        bias = [(token, value) for token, value in params.logit_bias if vocabulary is None or token < vocabulary]
        self._bias_ids = torch.tensor([token for token, _ in bias], dtype=torch.int64)
        self._bias = torch.tensor([value for _, value in bias], dtype=torch.float32)

    def known(self, logits_V: Tensor) -> Tensor:
        """The logits of the ids that may be sampled."""
        return logits_V if self._vocabulary is None else logits_V[: self._vocabulary]

    def choose(self, logits_V: Tensor) -> int:
        """Sample the next token and update the state. Raises SamplingError when logits are not finite or no token is
        allowed, and the exceptions of the grammar."""
        logits_V = self.known(logits_V)
        if not finite(logits_V):
            raise SamplingError("the model's logits are not finite")
        if self.params.temperature > 0:
            self.generator.manual_seed(_seed_at(self._seed, self._position))
        self._position += 1
        shaped_V = self._shape(logits_V)
        token = sample(shaped_V, self.params, self.generator)
        if self.params.trace:
            self.kept, self.mass = _kept(logits_V, shaped_V, self.params, token)
        if self.params.presence_penalty or self.params.frequency_penalty:
            self._said[token] = self._said.get(token, 0) + 1
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def guess(self, logits_V: Tensor, ahead: int) -> int:
        """The token that `choose` would take from these logits after `ahead` further tokens, without a grammar. Changes
        no state. It uses the random numbers of that position, so a draft from almost the model's logits is almost
        always the token that the model will be sampled to have (arXiv 2408.07978)."""
        logits_V = self.known(logits_V)
        if self.params.temperature > 0:
            self.generator.manual_seed(_seed_at(self._seed, self._position + ahead))
        return sample(self._moved(logits_V), self.params, self.generator)

    def _moved(self, logits_V: Tensor) -> Tensor:
        """Logits after bias and penalties; the input is not modified."""
        if len(self._bias):
            logits_V = logits_V.index_add(0, self._bias_ids, self._bias)
        if self._said:
            ids, times = torch.tensor(list(self._said)), torch.tensor(list(self._said.values()))
            penalty = self.params.presence_penalty + self.params.frequency_penalty * times
            logits_V = logits_V.index_add(0, ids, -penalty.float())
        return logits_V

    def _shape(self, logits_V: Tensor) -> Tensor:
        """Logits after constraint, penalties and bias; the input is not modified."""
        logits_V = self._moved(logits_V)
        mask = self._constraint.allowed() if self._constraint is not None else None
        if mask is not None:
            bits = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
            forbidden_V = torch.ones_like(logits_V, dtype=torch.bool)
            known = (bits[:, None] >> torch.arange(8)).bitwise_and(1).flatten()[: logits_V.shape[0]]
            forbidden_V[: len(known)] = known == 0
            if self._stops and self._other_ends and forbidden_V[self._stops].all():
                forbidden_V[self._other_ends] = True
            if forbidden_V.all():
                raise SamplingError("the grammar allows no token here")
            logits_V = logits_V.masked_fill(forbidden_V, float("-inf"))
        return logits_V


def _seed_at(seed: int, position: int) -> int:
    """The seed of one token. The generator reads 32 bits of a seed, so these bits must depend on seed and position."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def finite(rows: Tensor) -> bool:
    """Whether all numbers are finite. If they are, this costs one sum, which is cheaper than a test of each number."""
    return math.isfinite(float(rows.sum())) or bool(rows.isfinite().all())


def sample(logits_V: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """A token id whose logit is not -inf, if there is one. Temperature 0 takes the largest logit (the lowest id on
    ties). Otherwise the released rule applies: top-k, top-p and min-p cut the tail, then the token is the argmax of
    probabilities divided by Exponential(1) noise."""
    if params.temperature == 0:
        return int(logits_V.argmax())
    probability_V = _truncated(logits_V, params)
    noise_V = torch.empty_like(probability_V).exponential_(1, generator=generator)
    token = int((probability_V / noise_V).argmax())
    # a small temperature may overflow when logits are far apart; the largest logit is then the only choice
    return token if probability_V[token] > 0 else int(logits_V.argmax())


def _truncated(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities at the temperature of `params`; 0 for tokens that top-k, top-p and min-p cut."""
    probability_V = (logits_V / max(params.temperature, 1e-5)).softmax(dim=0)
    if 0 < params.top_k < logits_V.shape[0]:
        probability_V = _first(probability_V, params.top_k)
    if params.top_p < 1:
        probability_V = _nucleus(probability_V, params.top_p)
    if params.min_p > 0:
        probability_V = probability_V.masked_fill(probability_V < params.min_p * probability_V.max(), 0.0)
    return probability_V


def _kept(logits_V: Tensor, shaped_V: Tensor, params: SamplingParams, token: int) -> tuple[Sequence[int] | None, float]:
    """The ids among which `token` was chosen, ascending, and the log-probability of them together at temperature 1;
    (None, 0) if it was chosen among all ids, as a greedy choice always is."""
    cut = params.top_p < 1 or 0 < params.top_k < len(shaped_V) or params.min_p > 0
    if params.temperature == 0 or not (cut or shaped_V.isinf().any()):
        return None, 0.0
    left_V = _truncated(shaped_V, params) > 0 if cut else shaped_V > float("-inf")
    left_V[token] = True
    ids = left_V.nonzero().flatten()
    return array("i", ids.tolist()), float(logits_V.log_softmax(dim=0)[ids].logsumexp(dim=0))


def _first(probability_V: Tensor, k: int) -> Tensor:
    """Zero all but the k most likely tokens, the lower ids on ties."""
    order_V = probability_V.sort(descending=True, stable=True).indices
    return probability_V.index_fill(0, order_V[k:], 0.0)


def _nucleus(probability_V: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens that reaches `top_p` of the sum; the most likely token always stays."""
    sorted_V, order_V = probability_V.sort(descending=True, stable=True)
    before_V = sorted_V.cumsum(0) - sorted_V
    cut_V = before_V >= top_p * sorted_V.sum()
    cut_V[0] = False  # a top_p below the smallest float would cut all tokens
    return probability_V.index_fill(0, order_V[cut_V], 0.0)


def logprobs_of(logits_V: Tensor, token: int, top: int) -> TokenLogprobs:
    """Log-probabilities at temperature 1 of the sampled token and of the `top` most likely ones (at most the
    vocabulary)."""
    log_V = logits_V.log_softmax(dim=0)
    best = log_V.topk(min(top, log_V.shape[0])) if top else None
    pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
    return TokenLogprobs(float(log_V[token]), pairs)
