"""A generative reward model: the actor itself judges answers by a rubric, and learns to judge (report 5.1.1).

The judge is a prompt to the same policy. Where the truth about an answer is known, judging is a task like any other:
the judge's rollouts form groups of their own, rewarded by how near their verdict is to the truth, and are learned from
together with those of the role that answers.

No torch.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.generation import FinishReason, SamplingParams, TokenGenerator
from dsv4.posttraining.chat import ChatEnvironment, ChatEpisode, Verifier, chat_prompt, check_truth, read_turn
from dsv4.posttraining.environment import More, Verdict, task_field
from dsv4.posttraining.foreign import ForeignFault
from dsv4.posttraining.rollout import seed_of
from dsv4.posttraining.types import Effort, Group, Prompt
from dsv4.posttraining.verifiers import VERIFIERS

BEST = 10
_INSTRUCTION = (
    "You judge an answer by a rubric. Compare the answer with each point of the rubric. End with one line\n"
    f"Verdict: N\nwhere N is a whole number from 0 (no point is met) to {BEST} (all are met)."
)
_VERDICT = re.compile(
    r"^[ \t*]*verdict[ \t*]*:[ \t*]*(\d{1,3})(?:[ \t]*/[ \t]*10)?[ \t*.]*$", re.IGNORECASE | re.MULTILINE
)


def judge_messages(question: str, answer: str, rubric: str) -> list[dict[str, str]]:
    """The conversation that asks for a verdict. The answer is quoted as data: what it says to the judge is part of what
    is judged."""
    text = f"# Question\n{question}\n\n# Rubric\n{rubric}\n\n# Answer to judge\n{answer}"
    return [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": text}]


def judge_prompt(
    tokenizer: Tokenizer,
    key: str,
    *,
    question: str,
    answer: str,
    rubric: str,
    domain: str = "judge",
    effort: Effort = Effort.HIGH,
    truth: float | None = None,
) -> Prompt:
    """A prompt for the judging role. truth: the right reward of the answer, 0 to 1, where it is known: then the prompt
    can be learned from with `JUDGED_BY`."""
    task: dict[str, Any] = {} if truth is None else {"verifier": "verdict", "answer": truth}
    return chat_prompt(tokenizer, key, judge_messages(question, answer, rubric), domain=domain, effort=effort, **task)


def read_verdict(text: str) -> float | None:
    """The verdict of a judge's answer, 0 to 1; None where it has none, or more than one."""
    found = [int(number) for number in _VERDICT.findall(text)]
    return found[0] / BEST if len(found) == 1 and found[0] <= BEST else None


def verdict(text: str, expected: float) -> float:
    """Reward of a judge whose verdict should be `expected`: 1 minus the distance, 0 where there is no verdict."""
    given = read_verdict(text)
    return 0.0 if given is None else 1.0 - abs(given - float(expected))


JUDGED_BY: Mapping[str, Verifier] = {"verdict": verdict}


def judging_groups(
    tokenizer: Tokenizer, groups: Sequence[Group], truth: Mapping[str, Verifier], effort: Effort | None = None
) -> list[Prompt]:
    """Prompts for the judging role, made of what the answering role has just said: one for each judged rollout of a
    prompt whose task has a rubric, and beside it a verifier that knows the truth.

    truth: verifiers by name. effort: of the judge; None = that of the answer. Raises ValueError naming the prompt and
    the field that is missing.
    """
    prompts: list[Prompt] = []
    for group in groups:
        task = group.prompt.task
        if "rubric" not in task or task.get("verifier") not in truth:
            continue
        question = str(task_field(group.prompt, "messages")[-1]["content"])
        for index, rollout in enumerate(group.rollouts):
            if rollout.reward is None or not rollout.finished:
                continue
            parsed, _ = read_turn(tokenizer, rollout.tokens, rollout.finish, group.prompt.effort, ())
            right = truth[task["verifier"]](parsed.content, task["answer"])
            prompts.append(
                judge_prompt(
                    tokenizer,
                    f"judge/{group.prompt.key}/{index}",
                    question=question,
                    answer=parsed.content,
                    rubric=task["rubric"],
                    effort=effort or group.prompt.effort,
                    truth=right,
                )
            )
    return prompts


@dataclass(slots=True)
class Judge:
    """Asks the policy for verdicts. votes: how many; the reward is their mean. max_tokens: of one verdict. effort: of
    the judge; None = that of the answer, so that both roles think or neither does. A judge that gives no verdict in any
    vote leaves the answer without reward."""

    generator: TokenGenerator
    tokenizer: Tokenizer
    votes: int = 1
    max_tokens: int = 512
    effort: Effort | None = None
    seed: int = 0

    async def judge(
        self, key: str, question: str, answer: str, rubric: str, effort: Effort = Effort.HIGH
    ) -> tuple[float, float]:
        """The mean verdict, 0 to 1, and the share of votes that had one. effort: of the answer. Raises ForeignFault
        where no vote had a verdict."""
        effort = self.effort or effort
        prompt = judge_prompt(self.tokenizer, key, question=question, answer=answer, rubric=rubric, effort=effort)
        texts = [await self._say(prompt, index) for index in range(self.votes)]
        given = [value for value in map(read_verdict, texts) if value is not None]
        if not given:
            raise ForeignFault(f"the judge gave no verdict in {self.votes} answers, the last: {texts[-1][-80:]!r}")
        return sum(given) / len(given), len(given) / self.votes

    async def _say(self, prompt: Prompt, index: int) -> str:
        params = SamplingParams(
            max_tokens=self.max_tokens,
            seed=seed_of(self.seed, 0, prompt.key, index),
            stop_ids=(self.tokenizer.eos_id,),
        )
        tokens: list[int] = []
        finish, error = FinishReason.ERROR, None
        async for event in self.generator.stream(prompt.tokens, params):
            tokens += [event.token] if event.token is not None else []
            if event.finish is not None:
                finish, error = event.finish, event.error
        if finish in (FinishReason.ERROR, FinishReason.ABORT):
            raise ForeignFault(f"the judge was lost: {error}")
        return read_turn(self.tokenizer, tokens, finish, prompt.effort, ())[0].content


@dataclass(slots=True)
class RubricEnvironment:
    """Single-turn conversations without a rule for their answers: the task's `rubric` is judged by the policy itself.

    Prompts are those of `chat_prompt(..., rubric=...)`; their last message is the question. truth: verifiers of prompts
    whose task has `verifier` and `answer` beside the rubric: the policy learns from them to judge. taught: at most so
    many of a step's answers become prompts of the judging role. Prompts without a rubric are judged by their
    verifier.

    ruled: does that; one for all prompts, so that it counts all calls that hang."""

    tokenizer: Tokenizer
    judge: Judge
    truth: Mapping[str, Verifier] = field(default_factory=dict)
    taught: int = 0
    ruled: ChatEnvironment = field(init=False)

    def __post_init__(self) -> None:
        self.ruled = ChatEnvironment(self.tokenizer, {**self.truth, **JUDGED_BY})

    def start(self, prompt: Prompt) -> "RubricEpisode | ChatEpisode":
        if "rubric" not in prompt.task and "verifier" in prompt.task:
            return self.ruled.start(prompt)
        task_field(prompt, "rubric")
        task_field(prompt, "messages")
        if self.truth and "verifier" in prompt.task:
            check_truth(prompt, self.truth)
        return RubricEpisode(self, prompt)

    def following(self, groups: Sequence[Group]) -> list[Prompt]:
        """Prompts of the judging role, made of a step's answers: evenly spread where there are more than `taught`."""
        found = judging_groups(self.tokenizer, groups, self.truth, self.judge.effort)
        count = min(self.taught, len(found))
        return [found[i * len(found) // count] for i in range(count)]


def by_rubric(
    tokenizer: Tokenizer, policy: TokenGenerator, votes: int = 1, tokens: int = 512, taught: int = 8, seed: int = 0
) -> RubricEnvironment:
    """For recipes: environment.path = "dsv4.posttraining.judge:by_rubric". votes, tokens: of a verdict. Raises
    ValueError naming the option."""
    for name, value, least in (("votes", votes, 1), ("tokens", tokens, 1), ("taught", taught, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    judge = Judge(policy, tokenizer, votes=votes, max_tokens=tokens, seed=seed)
    return RubricEnvironment(tokenizer, judge, VERIFIERS, taught)


class RubricEpisode:
    """One answer."""

    def __init__(self, environment: RubricEnvironment, prompt: Prompt) -> None:
        self._environment, self._prompt = environment, prompt
        self._tokens: list[int] = []

    async def turn(self, tokens: Sequence[int], finish: FinishReason) -> More | None:
        self._tokens = list(tokens)
        return None

    def replay(self, tokens: Sequence[int], more: More) -> None:
        raise ValueError(f"prompt {self._prompt.key}: the log has several turns of an episode that has one")

    async def verdict(self, finish: FinishReason) -> Verdict:
        if finish is not FinishReason.STOP:
            return Verdict(0.0, {"cut": 1.0})
        environment, task = self._environment, self._prompt.task
        parsed, reasoning = read_turn(environment.tokenizer, self._tokens, finish, self._prompt.effort, ())
        key = f"{self._prompt.key}/{zlib.crc32(bytes(str(self._tokens), 'ascii')):08x}"
        question = str(task["messages"][-1]["content"])
        effort = self._prompt.effort
        reward, share = await environment.judge.judge(key, question, parsed.content, task["rubric"], effort)
        return Verdict(reward, {"cut": 0.0, "reasoning_tokens": float(reasoning), "verdicts": share})
