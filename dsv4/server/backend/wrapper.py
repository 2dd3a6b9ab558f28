"""The common part of generators that wrap another one: they tell what it tells."""

from dsv4.generation import EngineReport, Reporting, TokenGenerator


class GeneratorWrapper:
    """Tells of itself what `inner` tells. A subclass adds `stream`."""

    def __init__(self, inner: TokenGenerator) -> None:
        self._inner = inner

    @property
    def context_length(self) -> int:
        """As of `inner`."""
        return self._inner.context_length

    @property
    def failing(self) -> str | None:
        """The reason why `inner` cannot answer at present, None if it can or does not report it."""
        return getattr(self._inner, "failing", None)

    @property
    def reports(self) -> bool:
        """Whether `inner` reports its state."""
        inner = self._inner
        return inner.reports if isinstance(inner, GeneratorWrapper) else isinstance(inner, Reporting)

    async def report(self) -> EngineReport:
        """As of `inner`. Raises RuntimeError if it does not report its state."""
        if not isinstance(self._inner, Reporting):
            raise RuntimeError("this generator does not report its state")
        return await self._inner.report()
