"""Which requests run in the next step and how many tokens of each. Plain data in, plain data out."""

from dataclasses import dataclass

from dsv4.engine.request import Request


@dataclass(frozen=True, slots=True)
class Part:
    """`count` of a request's uncached tokens go into the step."""

    request: Request
    count: int


def plan(running: list[Request], budget: int) -> list[Part]:
    """Decoding requests first (one token each), then prompts in order of arrival, cut to the token budget.

    A request with one uncached token is decoding or finishing its prompt; both need one token. Every running request
    with one token always gets it, so long prompts never stall an answer.
    """
    parts = [Part(request, 1) for request in running if request.uncached == 1]
    left = max(1, budget - len(parts))
    for request in running:
        if request.uncached > 1 and left:
            count = min(request.uncached, left)
            parts.append(Part(request, count))
            left -= count
    return parts
