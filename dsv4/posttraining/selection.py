"""Which prompts a GRPO step learns from: groups that compare nothing give their place to others (dynamic sampling of
DAPO, 2503.14476), and prompts that the policy sometimes answers are asked again. No torch.

Advantages are rewards less their group's mean, so a prompt that is always or never answered teaches nothing.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from dsv4.posttraining.settings import SelectionSettings, asked_again
from dsv4.posttraining.types import Effort, Group, Prompt

Ask = Callable[[Sequence[Prompt]], Awaitable[list[Group]]]


def compares(group: Group) -> bool:
    """Whether some of a group's rewards differ, before any length penalty."""
    rewards = [rollout.reward for rollout in group.usable]
    return len(set(rewards)) > 1


@dataclass(frozen=True, slots=True)
class PromptPool:
    """Prompts of the right difficulty. entries: each a prompt as JSON holds it, the one asked longest ago first."""

    entries: tuple[Mapping[str, Any], ...] = ()

    def first(self, count: int) -> list[Prompt]:
        """So many, or all where there are fewer."""
        return [_prompt(entry) for entry in self.entries[:count]]

    def after(self, groups: Sequence[Group], settings: SelectionSettings) -> "PromptPool":
        """The pool when these groups are known: their prompts go to its end where the mean reward lies in
        [low, high] and some rewards differ, and out of it otherwise. A prompt that nothing could judge goes too."""
        asked = {group.prompt.key for group in groups}
        kept = [entry for entry in self.entries if entry["key"] not in asked]
        kept += [_entry(group.prompt) for group in groups if _fits(group, settings)]
        return PromptPool(tuple(kept[-settings.pool :]))


def _fits(group: Group, settings: SelectionSettings) -> bool:
    return compares(group) and settings.low <= _mean(group) <= settings.high


def _mean(group: Group) -> float:
    return fmean(rollout.reward or 0.0 for rollout in group.usable)


def _entry(prompt: Prompt) -> Mapping[str, Any]:
    # through JSON at once, so that a resumed run asks with the same values as one that was not stopped
    return json.loads(json.dumps(asdict(prompt)))


def _prompt(entry: Mapping[str, Any]) -> Prompt:
    key, domain, task = entry["key"], entry["domain"], entry["task"]
    return Prompt(key, tuple(entry["tokens"]), domain, Effort(entry["effort"]), task)


@dataclass(frozen=True, slots=True)
class Selected:
    """The groups of a step in the order in which they were asked. again: prompts of the pool, which come first. first:
    prompts that were drawn at first; the rest were drawn in the place of others."""

    groups: list[Group]
    again: int
    first: int

    def told(self, pool: PromptPool) -> dict[str, float]:
        """The numbers of a step. fresh_reward: of the prompts that were drawn at first, the only ones that were not
        chosen by rewards. pool: as it is after the step."""
        fresh = [_mean(group) for group in self.groups[self.again : self.again + self.first] if group.usable]
        found = {
            "asked": float(len(self.groups)),
            "redrawn": float(len(self.groups) - self.again - self.first),
            "asked_again": float(self.again),
            "pool": float(len(pool.entries)),
        }
        return found | ({"fresh_reward": fmean(fresh)} if fresh else {})


async def select(
    candidates: Sequence[Prompt], pool: PromptPool, wanted: int, settings: SelectionSettings, ask: Ask
) -> Selected:
    """Ask prompts until `wanted` groups compare something, or `settings.draws` times as many prompts were asked.

    candidates: `wanted` times `draws` prompts with different keys; the first ones are asked, as far as they are needed
    and not in the pool's share. ask: gives the groups of prompts in their order. What is asked follows from prompts
    and rewards alone, so a resumed step asks the same.
    """
    again = pool.first(asked_again(settings.again, wanted))
    taken = {prompt.key for prompt in again}
    fresh = (prompt for prompt in candidates if prompt.key not in taken)
    first = list(islice(fresh, wanted - len(again)))
    groups = await ask([*again, *first])
    for _ in range(settings.draws - 1):
        missing = wanted - sum(map(compares, groups))
        if not missing:
            break
        groups += await ask(list(islice(fresh, missing)))
    return Selected(groups, len(again), len(first))
