"""A run that learns from rollouts, from its first check to the folder it leaves: engine, environments and learner in
one process. `dsv4 grpo` and `dsv4 distill` differ in the run that they start."""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from dsv4.api.tokenizer import load_tokenizer
from dsv4.checkpoint.names import LAYOUTS, Layout
from dsv4.cli.folders import model_folder
from dsv4.cli.progress import RunProgress, StopAfterStep, check_live_port, console, live_page, report_at_end
from dsv4.cli.rollout_engine import rollout_engine
from dsv4.cli.train_export import export_model
from dsv4.cli.train_start import check_run_folder
from dsv4.config import ModelConfig
from dsv4.encoding import Tokenizer
from dsv4.generation import TokenGenerator, WeightSink
from dsv4.model.device import choose_device
from dsv4.model.layers import BF16, FP32
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.chat import ChatEnvironment
from dsv4.posttraining.environment import Environment
from dsv4.posttraining.foreign import CallsHangError, ForeignFault, told_as_fault
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.prompts import GeneratedPrompts, ListedPrompts, Prompts, read_prompts
from dsv4.posttraining.recipe import HeldOutSettings, PromptSettings, RolloutRecipe
from dsv4.posttraining.rollout import EngineLostError, RolloutRunner, RolloutSettings
from dsv4.posttraining.rollout_run import Record, RolloutRun, Sources
from dsv4.posttraining.settings import effort_settings
from dsv4.posttraining.to_come import EngineToCome
from dsv4.posttraining.types import Effort, Group, Prompt, Rollout
from dsv4.posttraining.verifiers import VERIFIERS
from dsv4.training.checks import StorageNeeds, check_room, model_bytes, state_of
from dsv4.training.documents import call_named, named_function
from dsv4.training.logbook import Logbook, check_tracker, open_tracker
from dsv4.training.run_lock import RunLock

_UNJUDGED = 3  # steps in a row without a verdict until the run stops
_SHOWN = 1500  # characters of a prompt or an answer in the log


@dataclass(frozen=True, slots=True)
class Options:
    """What the command says that is not part of the recipe."""

    live: int | None
    track: str | None
    export: str
    steps: int | None
    threads: int | None


R = TypeVar("R", bound=RolloutRecipe)
Start = Callable[[R, Path, Learner, Sources, WeightSink], RolloutRun[R]]


def run_recipe(recipe: R, place: Path, options: Options, start: Start[R]) -> None:
    """Run or resume, and export the model at the end. All that can be judged at once is judged first."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(recipe.device)
    check_live_port(options.live)
    if options.track is not None:
        check_tracker(options.track)
    base = BaseModel.open(model_folder(recipe.init))
    for note in base.notes:
        console().print(f"note: {note}")
    base.check_apart(place)
    check_run_folder(place)
    tokenizer = load_tokenizer(base.folder, base.config.vocab_size)
    if tokenizer is None:
        raise ValueError(f"init: {base.folder} has no tokenizer.json")
    layout = _layout(recipe, options.export)
    prompts = prompt_source(recipe.prompts, tokenizer, recipe.seed, "prompts")
    policy = EngineToCome()
    environments = environments_of(recipe, tokenizer, policy)
    known = _known(prompts, recipe.asked)
    check_prompts(recipe, known, environments)
    for prompt in known:
        recipe.check_domain(prompt)
    if recipe.held_out.every:
        held_out = prompt_source(recipe.held_out, tokenizer, recipe.seed, "held_out")
        check_prompts(recipe, _known(held_out, recipe.held_out.prompts), environments)
    recipe.check_teachers(base.config.vocab_size, tokenizer)
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.enter_context(RunLock(place))
        check_room(place, _needs(recipe, base.config, layout))
        page = held.enter_context(live_page(recipe.name, place / "log.jsonl", options.live))
        model = base.trainable(BF16 if recipe.numerics == "bf16" else FP32).to(device)
        learner = Learner(model, optimizer=recipe.optimizer, qat_from=recipe.qat_from)
        engine, sink = held.enter_context(
            rollout_engine(
                base.config,
                learner.weights(place),
                recipe.rollouts.numerics,
                context=recipe.rollouts.context,
                sequences=recipe.rollouts.concurrent,
                device=device,
            )
        )
        policy.engine = engine
        makers = Makers(recipe, engine, environments, tokenizer.eos_id, sink, place)
        run = start(recipe, place, learner, makers.sources(prompts, tokenizer), sink)
        finished = _show(run, place, None if page is None else page.url, options)
        if finished and layout is not None:
            target = export_model(place, base.config, learner.weights(place), layout, base.files())
            RunProgress(1).console.print(f"model: {target} ({layout.name})")


def _layout(recipe: RolloutRecipe, export: str) -> Layout | None:
    if export == "auto":
        export = "release" if recipe.qat_from is not None else "bf16"
    return None if export == "none" else LAYOUTS[export]


def _needs(recipe: RolloutRecipe, config: ModelConfig, layout: Layout | None) -> StorageNeeds:
    """Raises ValueError for a layout that cannot hold the model."""
    numbers, state = state_of(config, recipe.optimizer, recipe.numerics)
    model = 0 if layout is None else model_bytes(config, layout)
    return StorageNeeds(state, state + 4 * numbers, model, 4 * numbers if recipe.keeps_reference else 0)


def prompt_source(settings: PromptSettings | HeldOutSettings, tokenizer: Tokenizer, seed: int, where: str) -> Prompts:
    """What a recipe names. Raises ValueError naming the field, or the line of a file."""
    if ":" in settings.path and not settings.path.endswith(".jsonl"):
        make = named_function(where, settings.path, settings.options)
        return GeneratedPrompts(f"{where}: {settings.path}", make, tokenizer, settings.options, seed)
    return ListedPrompts(read_prompts(Path(settings.path), tokenizer), seed)


def check_efforts(recipe: RolloutRecipe, prompts: Sequence[Prompt]) -> None:
    """Raise ValueError where a prompt's mode has no settings."""
    for prompt in prompts:
        effort_settings(recipe.efforts, prompt.effort)


def _known(prompts: Prompts, asked: int) -> Sequence[Prompt]:
    """All prompts of a file, which may hold a mistake anywhere; of a function those of the first step."""
    first = prompts.batch(0, asked)
    return prompts.prompts if isinstance(prompts, ListedPrompts) else first


def check_prompts(recipe: RolloutRecipe, prompts: Sequence[Prompt], environments: Mapping[str, Environment]) -> None:
    """Raise ValueError where these prompts cannot be tried: no settings for the mode, no environment for the domain,
    no room for an answer, or a task that the environment does not take."""
    check_efforts(recipe, prompts)
    for prompt in prompts:
        if prompt.domain not in environments:
            known = ", ".join(environments)
            raise ValueError(f"prompt {prompt.key}: domain must be one of {known}, got {prompt.domain!r}")
        if len(prompt.tokens) >= recipe.rollouts.context:
            raise ValueError(
                f"prompt {prompt.key}: has {len(prompt.tokens):,} tokens, which leaves no room for an answer in "
                f"rollouts.context = {recipe.rollouts.context:,}"
            )
        if recipe.environment.path is None:
            _check_no_rubric(prompt)
        try:
            with told_as_fault(f"the environment of {prompt.domain}", passing=ValueError):
                environments[prompt.domain].start(prompt)
        except ForeignFault as error:
            raise ValueError(f"prompt {prompt.key}: {error}") from error


def _check_no_rubric(prompt: Prompt) -> None:
    if "rubric" in prompt.task:
        raise ValueError(
            f"prompt {prompt.key}: has a rubric, by which environment.path = "
            '"dsv4.posttraining.judge:by_rubric" judges; the recipe names no environment'
        )


class _OneForAll(dict[str, Environment]):
    """The same environment for every domain."""

    def __init__(self, environment: Environment) -> None:
        super().__init__()
        self._environment = environment

    def __contains__(self, domain: object) -> bool:
        return True

    def __missing__(self, domain: str) -> Environment:
        return self._environment


def environments_of(recipe: RolloutRecipe, tokenizer: Tokenizer, policy: TokenGenerator) -> Mapping[str, Environment]:
    """By domain; single turns with the named verifiers where the recipe says nothing. policy: for a function that has
    an argument of this name."""
    settings = recipe.environment
    if settings.path is None:
        return _OneForAll(ChatEnvironment(tokenizer, VERIFIERS))
    make = named_function("environment", settings.path, settings.options)
    where = f"environment: {settings.path}"
    if "policy" in settings.options:
        raise ValueError(f"{where}: policy is the engine of the run, and no option")
    given = {"policy": policy} if "policy" in inspect.signature(make).parameters else {}
    made = call_named(where, make, tokenizer, **settings.options, **given)
    for environment in made.values() if isinstance(made, Mapping) else (made,):
        if not callable(getattr(environment, "start", None)):
            raise ValueError(f"{where} returned {type(environment).__name__}; an environment has a method start")
    return made if isinstance(made, Mapping) else _OneForAll(made)


class Makers:
    """Rollouts of the recipe's modes: each mode has its own longest answer, so its own runner."""

    def __init__(
        self,
        recipe: RolloutRecipe,
        engine: TokenGenerator,
        environments: Mapping[str, Environment],
        end: int,
        sink: WeightSink,
        place: Path,
    ) -> None:
        self._recipe, self._engine, self._environments = recipe, engine, environments
        self._end, self._sink = end, sink
        self._learning = {effort: self._runner(effort, place / "rollouts" / effort) for effort in recipe.efforts}
        self._trying = {effort: self._runner(effort, None) for effort in recipe.efforts}

    def _runner(self, effort: Effort, folder: Path | None) -> RolloutRunner:
        """folder: None for held-out prompts, which nothing is learned from."""
        sampling, held_out = self._recipe.rollouts, self._recipe.held_out
        settings = RolloutSettings(
            group=held_out.samples if folder is None else sampling.group,
            max_tokens=self._recipe.efforts[effort].tokens,
            concurrent=sampling.concurrent,
            temperature=0.0 if folder is None and held_out.samples == 1 else 1.0,
            top_p=1.0 if folder is None else sampling.top_p,
            top_k=0 if folder is None else sampling.top_k,
            min_p=0.0 if folder is None else sampling.min_p,
            seed=self._recipe.seed,
            trace=self._recipe.replays and folder is not None,
        )
        return RolloutRunner(
            self._engine, self._environments, settings, end=self._end, weights=self._sink, folder=folder
        )

    async def _batch(
        self, runners: Mapping[Effort, RolloutRunner], prompts: Sequence[Prompt], number: int
    ) -> list[Group]:
        """The groups in the order of the prompts."""
        check_efforts(self._recipe, prompts)
        parts = {effort: [p for p in prompts if p.effort is effort] for effort in runners}
        made = await asyncio.gather(*(runners[effort].batch(part, number) for effort, part in parts.items() if part))
        groups = {group.prompt.key: group for part in made for group in part}
        return [groups[prompt.key] for prompt in prompts]

    async def tried(self, prompts: Sequence[Prompt]) -> list[Group]:
        """Answers as to held-out prompts; nothing is kept of them."""
        return await self._batch(self._trying, prompts, 0)

    def sources(self, prompts: Prompts, tokenizer: Tokenizer) -> Sources:
        """All that a run asks for."""
        held_out = self._recipe.held_out
        trial = None
        if held_out.every:
            source = prompt_source(held_out, tokenizer, self._recipe.seed, "held_out")
            asked = source.batch(0, held_out.prompts)
            check_efforts(self._recipe, asked)

            async def trial(step: int) -> list[Group]:
                return await self.tried(asked)

        async def groups(prompts: Sequence[Prompt], number: int) -> list[Group]:
            return await self._batch(self._learning, prompts, number)

        def forget(before: int) -> None:
            for runner in self._learning.values():
                runner.forget(before)

        def shown_of(groups: Sequence[Group]) -> list[dict[str, Any]]:
            return shown(groups, tokenizer)

        return Sources(prompts, groups, forget, trial, shown_of, tokenizer, self._following)

    def _following(self, groups: Sequence[Group]) -> list[Prompt]:
        """What the environments make of a step's groups."""
        found: list[Prompt] = []
        own = [self._environments[group.prompt.domain] for group in groups]
        for environment in {id(each): each for each in own}.values():
            follow = getattr(environment, "following", None)
            if follow is not None:
                found += follow([group for group, each in zip(groups, own, strict=True) if each is environment])
        return found


def shown(groups: Sequence[Group], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The best and the worst answer to the prompt of a step whose rewards differ most, for people to read."""
    judged = [sorted((r for r in group.rollouts if r.reward is not None), key=_reward) for group in groups]
    widest = max((part for part in judged if part), key=lambda part: _reward(part[-1]) - _reward(part[0]), default=None)
    if widest is None:
        return []
    return [
        {
            "prompt": tokenizer.decode(list(rollout.prompt.tokens))[-_SHOWN:],
            "answer": tokenizer.decode(list(rollout.tokens))[:_SHOWN],
            "reward": rollout.reward,
            "length": rollout.length,
        }
        for rollout in (widest[-1], widest[0])[: len(widest)]
    ]


def _reward(rollout: Rollout) -> float:
    return rollout.reward or 0.0


@dataclass(slots=True)
class _Lost:
    """Steps that taught nothing, and how many in a row had no answer that anything could judge."""

    steps: int = 0
    unjudged: int = 0

    def count(self, record: Record) -> None:
        self.steps += not record["learned"]
        # `reward` itself leaves out groups with one answer that could be judged; rewards by domain have every verdict
        judged = any(name.startswith("reward.") for name in record)
        self.unjudged = 0 if judged or not record["broken"] else self.unjudged + 1


def _show(run: RolloutRun[R], place: Path, url: str | None, options: Options) -> bool:
    """Run, log every step and show the progress. True if the run reached its end."""
    recipe = run.recipe
    trackers = (open_tracker(options.track, recipe.name, place, recipe.to_dict()),) if options.track else ()
    log_file = place / "log.jsonl"
    log = Logbook(log_file, run.step, trackers)
    bar = RunProgress(recipe.steps, run.step)
    bar.console.print(f"{recipe.name}: step {run.step:,} of {recipe.steps:,}")
    if url is not None:
        bar.console.print(f"curves and samples: {url}")
    report = place / "report.html"
    first, lost = run.step, _Lost()

    def tell(record: Record) -> bool:
        lost.count(record)
        log.write(record)
        bar.show(run.step, f"step {record['step']:,}", record["phase"], summary(record))
        return not stop.requested and run.step - first != options.steps and lost.unjudged < _UNJUDGED

    with report_at_end(recipe.name, log, report, {"recipe": recipe.to_dict()}), StopAfterStep() as stop, bar:
        try:
            finished = asyncio.run(run.run(tell))
        except (EngineLostError, CallsHangError) as error:
            raise ValueError(f"{error}; the same command goes on from the last state") from error
        if lost.steps:
            bar.console.print(
                f"note: {lost.steps:,} of {run.step - first:,} steps had nothing to learn from: groups with equal "
                f"rewards compare nothing, broken answers are those that nothing could judge; {log_file} counts both"
            )
        if lost.unjudged >= _UNJUDGED and not finished:
            raise ValueError(
                f"no answer of the last {lost.unjudged} steps could be judged, for the reasons above: the run stops "
                "here; the same command goes on"
            )
        if not finished:
            bar.console.print(f"saved after {run.step - first:,} steps; the same command resumes the run")
        if stop.requested:
            raise KeyboardInterrupt
    if finished:
        bar.console.print(f"done in {run.seconds / 60:.1f} minutes; report: {report}")
    return finished


_SUMMARY = (
    ("reward", "reward {:.3f}"), ("held_out_reward", "held out {:.3f}"), ("length", "length {:.0f}"),
    ("entropy", "entropy {:.2f}"), ("kl", "kl {:.4f}"), ("mismatch", "mismatch {:.1e}"), ("grad_norm", "norm {:.2f}"),
    ("rollout_tokens_per_second", "rollouts {:,.0f} tok/s"), ("tokens_per_second", "updates {:,.0f} tok/s"),
)  # fmt: skip


def summary(record: Record) -> str:
    """The most important numbers in one line of text."""
    parts = [form.format(record[name]) for name, form in _SUMMARY if name in record]
    parts += [
        f"{name} {record[name]:.0f}"
        for name in ("broken", "stale", "small", "equal", "redrawn", "repeating", "skipped")
        if record.get(name)
    ]
    parts += ["nothing to learn from"] if record.get("learned") == 0 else []
    return "  ".join(parts)
