"""A grading at work: row after row through the server, each written down as soon as it is there."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import openai

from dsv4.cli.progress import RunProgress
from dsv4.encoding import Tokenizer
from dsv4.files import write_whole
from dsv4.posttraining.types import Effort
from dsv4.posttraining.verifiers import reward
from recipes.nano.grading import needles, sheet, tools
from recipes.nano.grading.abilities import Ability
from recipes.nano.grading.clients import TIMEOUT, AnthropicDialogue, OpenAIDialogue
from recipes.nano.grading.dialogue import Dialogue, Turn
from recipes.nano.grading.figures import Outcome, figures, percent
from recipes.nano.grading.plan import Plan
from recipes.nano.items.item import Item
from recipes.nano.items.mix import prompt_of

Rows = dict[str, dict[str, Any]]


class Figures:
    """The file of figures. Rows of an earlier grading with the same settings are kept and not graded again."""

    def __init__(self, file: Path, plan: Plan, model: str) -> None:
        self.file = file
        self._about = {"model": model, "settings": plan.to_dict()}
        self.rows: Rows = {}
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if {name: found.get(name) for name in self._about} == self._about:
                self.rows = found["rows"]

    def has(self, row: str, mode: str) -> bool:
        return mode in self.rows.get(row, {})

    def put(self, row: str, mode: str, found: dict[str, Any]) -> None:
        self.rows.setdefault(row, {})[mode] = found
        text = json.dumps({**self._about, "rows": self.rows}, indent=1, ensure_ascii=False) + "\n"
        write_whole(self.file, lambda out: out.write(text.encode()))


class Progress:
    """Counts questions over the whole grading and says when it will be over."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._row = max(1, total), 0, ""
        self._bar = RunProgress(self._total)
        self._began = time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def row(self, name: str) -> None:
        self._row = name

    def step(self, count: int = 1) -> None:
        self._done += count
        left = (time.monotonic() - self._began) / self._done * max(0, self._total - self._done)
        self._bar.show(self._done, f"{self._done:,} of {self._total:,}", self._row, f"{left / 60:.1f} minutes left")

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False)


class Grading:
    """Talks with one server. Both SDKs share a limit of requests at once, which the server computes together."""

    def __init__(self, url: str, plan: Plan, kept: Figures, progress: Progress) -> None:
        self._plan, self._kept, self._progress = plan, kept, progress
        self._openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=TIMEOUT)
        self._anthropic = anthropic.AsyncAnthropic(base_url=url, api_key="none", timeout=TIMEOUT)
        self._slots = asyncio.Semaphore(plan.concurrent)

    async def close(self) -> None:
        await self._openai.close()
        await self._anthropic.close()

    async def abilities(self) -> None:
        """Every row of `Plan.abilities` that is missing."""
        for ability in self._plan.abilities():
            missing = [effort for effort in ability.efforts if not self._kept.has(ability.name, effort)]
            items = self._plan.draw(ability) if missing else []
            for effort in missing:
                self._progress.row(f"{ability.name}, {effort}")
                outcomes = await self._all(self._asked(ability, effort, i, item) for i, item in enumerate(items))
                row = figures(outcomes, lambda outcome: outcome.kind.split())
                self._put(ability.name, effort, row)

    def _put(self, name: str, mode: str, row: dict[str, Any]) -> None:
        self._kept.put(name, mode, row)
        self._progress.say(f"{name}, {mode}: {percent(row)} % of {row['n']}")

    async def _all(self, jobs: Iterable[Awaitable[Outcome]]) -> list[Outcome]:
        async def one(job: Awaitable[Outcome]) -> Outcome:
            async with self._slots:
                outcome = await job
            self._progress.step()
            return outcome

        return await asyncio.gather(*map(one, jobs))

    async def _asked(self, ability: Ability, effort: Effort, number: int, item: Item) -> Outcome:
        if ability.play == "tools":
            # items go round the kinds, so that an SDK that changed with each would always have the same kinds
            openai = number // len(ability.makers) % 2
            sdk, dialogue = ("openai", self._openai_tools) if openai else ("anthropic", self._anthropic_tools)
            outcome = await tools.play(item, dialogue(item, effort))
            return Outcome(f"{outcome.kind} {sdk}", outcome.score, outcome.tokens, outcome.cut, outcome.counts)
        kind = " ".join((item.task, *ability.tags(item)))
        if ability.samples == 1:
            return _judge(item, kind, [await self._ask(item, effort)])
        turns = [
            await self._ask(item, effort, temperature=1.0, seed=1000 * number + sample)
            for sample in range(ability.samples)
        ]
        return _judge(item, kind, turns)

    async def _ask(self, item: Item, effort: Effort, *, temperature: float = 0.0, seed: int | None = None) -> Turn:
        return await OpenAIDialogue(self._openai, effort, prompt_of(item), temperature=temperature, seed=seed).answer()

    def _openai_tools(self, item: Item, effort: Effort) -> Dialogue:
        system = {"role": "system", "content": _system(item), "tools": list(item.tools)}
        return OpenAIDialogue(self._openai, effort, [system])

    def _anthropic_tools(self, item: Item, effort: Effort) -> Dialogue:
        return AnthropicDialogue(self._anthropic, effort, system=_system(item), tools=item.tools)

    async def needles(self, length: int, count: int, tokenizer: Tokenizer) -> None:
        """Texts of one length, one at a time where they are long, until there are `count` questions or the time is
        over."""
        if self._kept.has("needles", str(length)):
            return
        self._progress.row(f"needles, {length:,} tokens")
        over = time.monotonic() + 60 * self._plan.needle_minutes
        rng, outcomes = random.Random(f"{self._plan.seed}/needles/{length}"), list[Outcome]()
        together = max(1, min(self._plan.concurrent, 32768 // length))

        def enough() -> bool:
            return time.monotonic() > over

        while len(outcomes) < count and not enough():
            wanted = -(-(count - len(outcomes)) // needles.TURNS)
            texts = [needles.text_of(rng, length, tokenizer) for _ in range(min(together, wanted))]
            dialogue = partial(OpenAIDialogue, self._openai, needles.EFFORT)
            parts = await asyncio.gather(*(needles.ask(text, dialogue, self._progress.step, enough) for text in texts))
            outcomes += [outcome for part in parts for outcome in part]
        self._put("needles", str(length), figures(outcomes))

    async def small_talk(self, file: Path, model: str) -> None:
        """Ask all held-out wordings and write the sheet."""
        if self._kept.has("small talk", "high") and file.exists():
            return
        self._progress.row("small talk")
        turns: dict[sheet.Wording, Turn] = {}

        async def one(wording: sheet.Wording) -> Outcome:
            message = {"role": "user", "content": wording.text}
            turns[wording] = turn = await OpenAIDialogue(self._openai, Effort.HIGH, [message]).answer()
            return Outcome(wording.intent, float(wording.known(turn.content)), turn.tokens, turn.cut)

        asked = sheet.wordings()
        row = figures(await self._all(one(wording) for wording in asked))
        text = sheet.page(model, [(wording, turns[wording]) for wording in asked])
        write_whole(file, lambda out: out.write(text.encode()))
        self._put("small talk", "high", row)


def _system(item: Item) -> str:
    first = item.messages[0]
    return first["content"] if first["role"] == "system" else ""


def _judge(item: Item, kind: str, turns: Sequence[Turn]) -> Outcome:
    """Right where one of the turns is."""
    scores = [0.0 if turn.cut else reward(item.verifier, turn.content, item.answer) for turn in turns]
    tokens = sum(turn.tokens for turn in turns) // len(turns)
    return Outcome(kind, max(scores), tokens, any(turn.cut for turn in turns))
