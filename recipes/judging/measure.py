"""How well a folder's policy sorts held-out letters, how often its verdicts are right, and what its judge lets through.

    .venv/bin/python -m recipes.judging.measure FOLDER [FOLDER ...] [--questions 400]

Prints one line of JSON for each folder. The questions are the same for all, and none was trained on. Answers and
verdicts are sampled at temperature 1, as a run samples them; `greedy` takes the likeliest tokens.
"""

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dsv4
from dsv4.cli.__main__ import sentence
from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingParams, TokenGenerator
from dsv4.posttraining.chat import chat_prompt, read_turn
from dsv4.posttraining.foreign import ForeignFault
from dsv4.posttraining.judge import Judge
from dsv4.posttraining.types import Effort
from dsv4.posttraining.verifiers import text
from recipes.judging.letters import FAULTS, RUBRIC, question

SEED, TOKENS, CONCURRENT = 20261128, 48, 64
Figure = tuple[float, float]


def share(found: Sequence[bool]) -> Figure:
    """In percent, with the standard error of a mean of so many yes or no."""
    mean = sum(found) / len(found)
    return round(100 * mean, 1), round(100 * (mean * (1 - mean) / len(found)) ** 0.5, 1)


class Measured:
    """A policy under measurement."""

    def __init__(self, policy: TokenGenerator, tokenizer: Tokenizer, questions: int) -> None:
        self._policy, self._tokenizer, self._judge = policy, tokenizer, Judge(policy, tokenizer, max_tokens=TOKENS)
        self._asked = asyncio.Semaphore(CONCURRENT)
        rng = random.Random(SEED)
        self._questions = [question(rng, held_out=True) for _ in range(questions)]

    async def figures(self) -> dict[str, Any]:
        """All of them."""
        greedy, sampled = self._right(await self._answers(0.0)), await self._answers(1.0)
        right = self._right(sampled)
        passed = await self._passed([(asked, said) for said, (asked, _) in zip(sampled, self._questions, strict=True)])
        found: dict[str, Any] = {
            "greedy": share(greedy),
            "sampled": share(right),
            "passed": share([p is True for p in passed]),
            "own": share([p == r for p, r in zip(passed, right, strict=True)]),
        }
        for name, good in (("own_right", True), ("own_wrong", False)):
            of = [p == r for p, r in zip(passed, right, strict=True) if r == good]
            found[name] = (*share(of), len(of)) if of else None
        kinds = Counter(kind_of(said, order) for said, (_, order) in zip(sampled, self._questions, strict=True))
        return found | {"kinds": dict(kinds.most_common()), "verdicts": await self._given_answers()}

    def _right(self, answers: Sequence[str]) -> list[bool]:
        """By the rule, answer by answer."""
        return [bool(text(said, " ".join(order))) for said, (_, order) in zip(answers, self._questions, strict=True)]

    async def _given_answers(self) -> dict[str, Figure]:
        """How often the verdict is right on answers that are the same for every policy: half of them right, the others
        with each fault in turn."""
        rng, kinds, made = random.Random(SEED + 1), list(FAULTS), list[tuple[str, str, str]]()
        for i, (asked, order) in enumerate(self._questions):
            kind = "right" if i % 2 else kinds[i // 2 % len(kinds)]
            said = order if kind == "right" else FAULTS[kind](rng, order)
            made.append((kind, asked, " ".join(said)))
        passed = await self._passed([(asked, said) for _, asked, said in made])
        correct = [(kind, p == (kind == "right")) for (kind, _, _), p in zip(made, passed, strict=True)]
        by_kind = {name: share([c for kind, c in correct if kind == name]) for name in ("right", *kinds)}
        return {"all": share([c for _, c in correct])} | by_kind

    async def _answers(self, temperature: float) -> list[str]:
        return await asyncio.gather(*(self._answer(i, temperature) for i in range(len(self._questions))))

    async def _answer(self, number: int, temperature: float) -> str:
        messages = [{"role": "user", "content": self._questions[number][0]}]
        prompt = chat_prompt(self._tokenizer, "", messages, domain="letters", effort=Effort.NON_THINK)
        stop = (self._tokenizer.eos_id,)
        params = SamplingParams(temperature=temperature, max_tokens=TOKENS, seed=SEED + number, stop_ids=stop)
        tokens, finish = [], None
        async with self._asked:
            async for event in self._policy.stream(prompt.tokens, params):
                tokens += [event.token] if event.token is not None else []
                finish = event.finish or finish
        assert finish is not None
        return read_turn(self._tokenizer, tokens, finish, Effort.NON_THINK, ())[0].content

    async def _passed(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether the judge lets each answer through: a verdict above the middle; None where there is no verdict."""
        return await asyncio.gather(*(self._passes(i, *pair) for i, pair in enumerate(pairs)))

    async def _passes(self, number: int, asked: str, said: str) -> bool | None:
        async with self._asked:
            try:
                reward, _ = await self._judge.judge(f"{number}", asked, said, RUBRIC, Effort.NON_THINK)
            except ForeignFault:  # no verdict, which is never right
                return None
        return reward > 0.5


def kind_of(said: str, order: Sequence[str]) -> str:
    """What is wrong with an answer, in words for a table."""
    given = said.split()
    if given == list(order):
        return "right"
    if given != sorted(given):
        return "not in order"
    if len(set(given)) < len(given):
        return "one twice"
    return "other letters" if set(given) - set(order) else "one missing"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of models")
    parser.add_argument("--questions", type=int, default=400)
    given = parser.parse_args(arguments)
    if given.questions < 8:
        parser.error(f"--questions must be at least 8, got {given.questions}")
    try:
        for folder in given.folders:
            model = dsv4.load(folder, "fp32", context_length=512, sequences=CONCURRENT, draft="none", threads=1)
            figures = asyncio.run(Measured(model.service, model.tokenizer, given.questions).figures())
            print(json.dumps({"folder": str(folder), **figures}), flush=True)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{sentence(error)}\n")


if __name__ == "__main__":
    main()
