"""A suite as a task of inspect-ai: it asks the items, scores the answers, and hands each scored answer on at once."""

import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dsv4.evals.client import Client, switches
from dsv4.evals.extra import needs_extra
from dsv4.evals.kept import KeptAnswer
from dsv4.evals.provider import answer_in, from_wire, kept_answer, model_of, read_answer
from dsv4.evals.suite import Graded, Item, Message, Mode, Score, Suite
from dsv4.verify.answer import Answer
from dsv4.verify.endpoint import RefusedError, UnreachableError

with needs_extra():
    import anyio.to_thread
    import inspect_ai  # pyrefly: ignore[missing-import]
    from inspect_ai import scorer, solver  # pyrefly: ignore[missing-import]
    from inspect_ai.dataset import MemoryDataset, Sample  # pyrefly: ignore[missing-import]
    from inspect_ai.model import GenerateConfig, get_model  # pyrefly: ignore[missing-import]

_ERRORS = 20  # answers that cannot be had, after which a run ends: the endpoint is gone


@dataclass(frozen=True, slots=True)
class Asking:
    """How a run asks. room: tokens of an answer to an item. judge: who grades, where the suite takes one."""

    suite: Suite
    mode: Mode
    seed: int
    temperature: float
    concurrency: int
    room: Callable[[Item], int]
    judge: Client | None = None

    def fields(self, item: Item, sample: int) -> dict[str, Any]:
        """The fields of a request besides its messages. The seed is of the answer, so that a run can be repeated."""
        number = zlib.crc32(f"{self.seed}/{item.id}/{sample}".encode()) % 2**31
        limit = {"max_tokens": self.room(item), "temperature": self.temperature, "top_p": 1.0, "seed": number}
        return {**limit, **switches(self.mode), **item.fields}


def ask_all(
    asking: Asking,
    client: Client,
    wanted: Sequence[tuple[Item, int]],
    logs: str,
    take: Callable[[KeptAnswer], None],
) -> list[str]:
    """Ask for every wanted answer (an item and its number) with inspect-ai, which writes its log to the folder `logs`.
    take: gets each scored answer. Returns why answers could not be had. Raises KeyboardInterrupt, and the OSError of
    `take`, after which nothing more is asked: an answer that cannot be kept is paid for and lost."""
    unkept: list[OSError] = []

    def keep(answer: KeptAnswer) -> None:
        _check_kept(unkept)  # no line may follow a part of one
        try:
            take(answer)
        except OSError as error:
            unkept.append(error)
            raise

    items = {f"{item.id} #{sample}": (item, sample) for item, sample in wanted}
    lost: dict[str, str] = {}
    samples = [
        Sample(id=name, input=from_wire(item.messages), target=str(item.target), metadata={"group": item.group})
        for name, (item, _) in items.items()
    ]
    task = inspect_ai.Task(
        name=asking.suite.name,
        dataset=MemoryDataset(samples, name=asking.suite.name),
        solver=_ask(asking, items, lost, unkept),
        scorer=_grade(asking, items, keep, lost),
    )
    with _logs_as_they_were():
        (log,) = inspect_ai.eval(
            task,
            model=model_of(client),
            log_dir=logs,
            display="none",
            log_level="error",
            fail_on_error=_ERRORS,
            max_samples=asking.concurrency,
            max_connections=asking.concurrency,
            max_retries=0,
            log_model_api=False,
            log_realtime=False,
            ctl_server=False,
            score_display=False,
        )
    if log.status == "cancelled":
        raise KeyboardInterrupt
    _check_kept(unkept)
    return _reasons(log, lost)


def _check_kept(unkept: Sequence[OSError]) -> None:
    if unkept:
        raise unkept[0]


@contextmanager
def _logs_as_they_were() -> Iterator[None]:
    """Put level and handlers of the root logger back: inspect-ai sets them for the whole process."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextmanager
def _noting(lost: dict[str, str], name: object) -> Iterator[None]:
    """Keep the message of a server's error, which inspect-ai shows as code."""
    try:
        yield
    except (RefusedError, UnreachableError) as error:
        lost[str(name)] = str(error)
        raise


def _reasons(log: Any, lost: Mapping[str, str]) -> list[str]:
    failed = [(str(sample.id), sample.error.message) for sample in log.samples or () if sample.error is not None]
    # a run that ends early cancels what was being asked
    found = [lost.get(name, told) for name, told in failed if not told.startswith("CancelledError")]
    return found or ([log.error.message] if log.error is not None else [])


@solver.solver
def _ask(
    asking: Asking, items: Mapping[str, tuple[Item, int]], lost: dict[str, str], unkept: Sequence[OSError]
) -> solver.Solver:
    async def solve(state: solver.TaskState, generate: solver.Generate) -> solver.TaskState:
        _check_kept(unkept)
        item, sample = items[str(state.sample_id)]
        model, began, told = get_model(), time.monotonic(), list[Answer]()
        asked = item.messages

        async def talk(messages: Sequence[Message], tools: Sequence[Message]) -> Answer:
            nonlocal asked
            body = asking.fields(item, sample) | ({"tools": list(tools)} if tools else {})
            asked, state.messages = tuple(messages), from_wire(messages)
            state.output = await model.generate(state.messages, config=GenerateConfig(extra_body=body))
            state.messages.append(state.output.message)
            told.append(answer_in(state.output))
            return told[-1]

        play = asking.suite.play
        with _noting(lost, state.sample_id):
            answer = await (talk(item.messages, item.tools) if play is None else play(item, talk))
        state.metadata["answer"], state.metadata["asked"] = kept_answer(answer), [dict(message) for message in asked]
        state.metadata["prompt_tokens"] = _counted(told, "prompt_tokens")
        state.metadata["tokens"] = _counted(told, "completion_tokens")
        state.metadata["seconds"] = round(time.monotonic() - began, 3)
        return state

    return solve


def _counted(told: Sequence[Answer], name: str) -> int | None:
    """A count of tokens over the turns of a conversation; None where a turn came without it."""
    counts = [one.count(name) for one in told]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


@scorer.scorer(metrics=[scorer.mean()])
def _grade(
    asking: Asking,
    items: Mapping[str, tuple[Item, int]],
    take: Callable[[KeptAnswer], None],
    lost: dict[str, str],
) -> scorer.Scorer:
    async def score(state: solver.TaskState, target: scorer.Target) -> scorer.Score:
        item, sample = items[str(state.sample_id)]
        answer = read_answer(state.metadata["answer"])
        with _noting(lost, state.sample_id):
            result = await _scored(asking, item, answer)
        graded = Graded(
            item.id,
            sample,
            result.value,
            item.group,
            item.cluster or item.id,
            dict(result.figures),
            answer.finish or "",
            state.metadata["prompt_tokens"],
            state.metadata["tokens"],
            state.metadata["seconds"],
            dict(item.data),
        )
        asked = tuple(state.metadata["asked"])
        take(KeptAnswer(graded, result.found, result.why, item.target, asked, state.metadata["answer"]))
        return scorer.Score(value=result.value, answer=result.found, explanation=result.why)

    return score


async def _scored(asking: Asking, item: Item, answer: Answer) -> Score:
    grader = asking.suite.judge
    if grader is None or asking.judge is None:
        return await anyio.to_thread.run_sync(asking.suite.score, item, answer)
    body = {"messages": [{"role": "user", "content": grader.prompt(item, answer)}], "temperature": 0.0}
    said = await asking.judge.ask(body | {"max_tokens": 4096} | switches(Mode.NON_THINK))
    return grader.verdict(said.content)
