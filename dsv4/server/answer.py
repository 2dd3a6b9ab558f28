"""Running a generator for one answer, with its failures as the errors of the interface.

Every HTTP dialect of the server builds on this and on `dsv4.answer`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from dsv4.answer import Answer, Piece
from dsv4.generation import FinishReason, SamplingParams, TokenEvent, TokenGenerator
from dsv4.server.errors import ApiError


async def run(
    generator: TokenGenerator, prompt: Sequence[int], params: SamplingParams, answer: Answer
) -> AsyncGenerator[Piece, None]:
    """Generate until the answer is over; closes the generator's stream however it ends.

    Raises ApiError: 400 if the engine refuses the request, 500 if it fails or ends without saying why.
    """
    events = generator.stream(prompt, params)
    try:
        while (event := await _next(events, started=answer.completion_tokens > 0)) is not None:
            if event.finish is FinishReason.ERROR:
                raise ApiError(500, event.error or "the engine failed", code="engine_error")
            yield _step(answer, event)
            if answer.over:
                return
    finally:
        await _close(events)
    raise ApiError(500, "the engine ended the answer without a reason", code="engine_error")


def _step(answer: Answer, event: TokenEvent) -> Piece:
    try:
        return answer.step(event)
    except ValueError as error:
        # a model may have more rows than its tokenizer has tokens, and sample one of them
        raise ApiError(500, f"the model wrote what its tokenizer cannot read: {error}", code="engine_error") from error


async def _next(events: AsyncIterator[TokenEvent], *, started: bool) -> TokenEvent | None:
    try:
        return await anext(events, None)
    except ValueError as error:
        if started:
            raise
        # refused before any work: the request is at fault, not the engine
        raise ApiError(400, str(error)) from error


async def _close(events: AsyncIterator[TokenEvent]) -> None:
    # the protocol promises an iterator; only generators have something to close
    if isinstance(events, AsyncGenerator):
        await events.aclose()
