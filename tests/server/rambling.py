"""A model that says anything it may: every step takes one of the allowed tokens by chance."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence

from dsv4.encoding import Tokenizer
from dsv4.generation import LOWEST_BIAS, FinishReason, RequestOptions, SamplingParams, TokenEvent
from dsv4.testing.stub import StubGenerator


class Rambling(StubGenerator):
    """Draws from all tokens that the constraint leaves, control tokens with the same chance as all others together, so
    that whatever a grammar forgets to forbid comes soon. The seed of the request decides, or how many came before."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__([])
        self._vocabulary = range(tokenizer.vocab_size)
        self._controls = frozenset(tokenizer.controls)
        self._asked = 0

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        self._asked += 1
        chance = random.Random(self._asked if params.seed is None else params.seed)
        banned = {token for token, bias in params.logit_bias if bias <= LOWEST_BIAS}
        state = params.constraint.start() if params.constraint is not None else None
        for written in range(1, params.max_tokens + 1):
            mask = state.allowed() if state is not None else None
            may = (token for token in self._vocabulary if mask is None or mask[token // 8] >> token % 8 & 1)
            allowed = [token for token in may if token not in banned]
            controls = [token for token in allowed if token in self._controls]
            token = chance.choice(controls if controls and chance.random() < 0.5 else allowed)
            if state is not None:
                state.accept(token)
            over = token in params.stop_ids
            end = FinishReason.STOP if over else FinishReason.LENGTH if written == params.max_tokens else None
            yield TokenEvent(token, end)
            if over:
                return
            await asyncio.sleep(0)
