"""Looked-up drafts of the requests of one engine: which of them a step checks."""

import math
from collections.abc import Sequence

from dsv4.config.drafts import MOST_CHECKED
from dsv4.engine.draft_pace import StepTimes, worth_checking
from dsv4.engine.prompt_lookup import PromptLookup
from dsv4.engine.request import Request


class LookupDrafts:
    """Sets looked-up drafts, as many as the measured times of steps make worth while. most: tokens of one draft. Raises
    ValueError if they are more than a step checks."""

    def __init__(self, most: int) -> None:
        if not 0 <= most <= MOST_CHECKED:
            raise ValueError(f"lookup must be in [0, {MOST_CHECKED}], got {most}")
        self.most, self.times = most, StepTimes()

    def propose(self, requests: Sequence[Request], instead_of: float = 0.0) -> None:
        """Set the drafts of requests whose last token is the only one not in the cache; none where nothing was found or
        drafts would not pay. instead_of: a request gets none if fewer right tokens are expected."""
        found: list[tuple[list[int], list[float]]] = []
        for request in requests:
            drafts, survivals = _draft(request, self.most)
            found.append((drafts, survivals) if drafts and math.fsum(survivals) >= instead_of else ([], []))
        if not any(drafts for drafts, _ in found):
            return
        counts = self.lengths([survivals for _, survivals in found])
        for request, (drafts, _), count in zip(requests, found, counts, strict=True):
            request.drafts = drafts[:count]

    def lengths(self, survivals: Sequence[Sequence[float]]) -> list[int]:
        """For each request, how many of its drafts the next step checks. survivals: as in `draft_pace.Pace.lengths`."""
        return worth_checking(survivals, self.times, most=MOST_CHECKED)[0]


def _draft(request: Request, most: int) -> tuple[list[int], list[float]]:
    lookup = request.lookup
    if lookup is not None:
        lookup.follow()
    elif request.generated > 1:  # a long prompt takes milliseconds, for which the first token should not wait
        lookup = request.lookup = PromptLookup(request.tokens)
    return ([], []) if lookup is None else lookup.draft(min(most, request.room))
