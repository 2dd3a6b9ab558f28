"""The engine of a run, for environments: they are made and checked before any weights are loaded."""

from collections.abc import AsyncIterator, Sequence

from dsv4.generation import RequestOptions, SamplingParams, TokenEvent, TokenGenerator


class EngineToCome:
    """A TokenGenerator whose `engine` is set when there is one."""

    def __init__(self) -> None:
        self.engine: TokenGenerator | None = None

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncIterator[TokenEvent]:
        return self._engine.stream(prompt, params, options)

    @property
    def _engine(self) -> TokenGenerator:
        if self.engine is None:
            raise ValueError("policy: it can answer when the run has begun, not while environments are made")
        return self.engine
