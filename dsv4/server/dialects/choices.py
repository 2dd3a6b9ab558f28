"""Several answers to one request: `n` of chat and text completions."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from dsv4.answer import AnswerStep, TokenRecord
from dsv4.server.dialects.fields import between
from dsv4.server.dialects.job import AnswerJob
from dsv4.server.dialects.run import Run

MOST_CHOICES = 128
# the field `n` of a request
Count = Annotated[int | None, between(1, MOST_CHOICES)]


def usage_of(jobs: Sequence[AnswerJob]) -> dict[str, Any]:
    """Token counts so far, in the official form. The prompt of all choices is one and counts once."""
    prompt, reused = len(jobs[0].prompt), jobs[0].reused
    completion = sum(job.answer.completion_tokens for job in jobs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reused},
        "completion_tokens_details": {"reasoning_tokens": sum(job.answer.reasoning_tokens for job in jobs)},
        "prompt_cache_hit_tokens": reused,
        "prompt_cache_miss_tokens": prompt - reused,
    }


@dataclass(slots=True)
class ChoicesRun(Run):
    """A run of one or several answers to one prompt. more: the jobs of all choices but the first."""

    more: Sequence[AnswerJob]

    @property
    def jobs(self) -> tuple[AnswerJob, ...]:
        """The job of each choice."""
        return (self.job, *self.more)

    @property
    def over(self) -> bool:
        """Whether every choice is complete."""
        return all(job.answer.over for job in self.jobs)

    async def steps(self) -> AsyncGenerator[tuple[int, AnswerStep], None]:
        """The steps of all choices as they come, each with the index of its choice. Raises the errors of
        `AnswerJob.steps`; the other choices then end too.

        The others begin with the first token of the first choice: then the prefix cache has the prompt, and it is
        computed once.
        """
        if not self.more:
            async with aclosing(self.job.steps()) as steps:
                async for step in steps:
                    yield 0, step
            return
        streams = [job.steps() for job in self.jobs]
        waiting = {asyncio.ensure_future(_anext(streams[0])): 0}
        begun = False
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = waiting.pop(task)
                    step = task.result()
                    if step is not None:
                        waiting[asyncio.ensure_future(_anext(streams[index]))] = index
                    if not begun and (self.job.tokens or step is None):
                        begun = True
                        more = enumerate(streams[1:], start=1)
                        waiting |= {asyncio.ensure_future(_anext(stream)): at for at, stream in more}
                    if step is not None:
                        yield index, step
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for stream in streams:
                await stream.aclose()

    async def finished(self) -> list[tuple[AnswerJob, list[TokenRecord]]]:
        """Run to the end; returns each choice with the log-probabilities of its text. Raises the errors of `steps`."""
        records: list[list[TokenRecord]] = [[] for _ in self.jobs]
        async with aclosing(self.steps()) as steps:
            async for index, step in steps:
                records[index] += step.logprobs
        return list(zip(self.jobs, records, strict=True))

    async def close(self) -> None:
        for job in self.jobs:
            await job.close()

    def report(self) -> dict[str, Any]:
        """The fields of all choices for the log line: the tokens together, the rest of the first."""
        if not self.more:
            return self.job.report()
        completion = sum(job.answer.completion_tokens for job in self.jobs)
        cost = round(sum(job.cost for job in self.jobs), 9)
        return {**self.job.report(), "choices": len(self.jobs), "completion_tokens": completion, "cost_usd": cost}


async def _anext(steps: AsyncGenerator[AnswerStep, None]) -> AnswerStep | None:
    return await anext(steps, None)
