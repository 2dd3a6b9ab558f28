"""Grading finished models with the engine that serves them: fresh documents, greedy answers."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from dsv4.api.loading import load
from dsv4.api.local_model import LocalModel
from dsv4.generation import RequestOptions, SamplingParams
from recipes.evidence.tasks import ASK, BOS, SIZE, VALUES, haystack

Reads = Literal["as trained", "the whole window", "every entry"]


def _opened(folder: Path, mode: str, context: int, changes: Mapping[str, int] | None = None) -> LocalModel:
    """changes: other numbers in the config, for the same weights."""
    with TemporaryDirectory() as room:
        if changes:
            for file in folder.iterdir():
                (Path(room) / file.name).symlink_to(file.resolve())
            config = json.loads((folder / "config.json").read_text())
            (Path(room) / "config.json").unlink()
            (Path(room) / "config.json").write_text(json.dumps({**config, **changes}))
        place = Path(room) if changes else folder
        model = load(place, mode, context_length=context, sequences=1, step_tokens=2048)  # type: ignore[arg-type]
    model.engine.eos = -1  # ids are plain numbers here
    return model


def _answer(model: LocalModel, prompt: list[int], tokens: int = 1, keep: tuple[int, ...] = ()) -> list[int]:
    params = SamplingParams(max_tokens=tokens, temperature=0)
    events = model.engine.generate(prompt, params, RequestOptions(cache_points=keep))
    return [event.token for event in events if event.token is not None]


def retrieval(
    folder: Path, length: int, documents: int, *, reads: Reads = "as trained", needles: int = 16, seed: int = 7
) -> tuple[int, int]:
    """(right, asked): every key of each document, the document itself computed once.

    reads: "the whole window" widens the window to the document, "every entry" takes the choice away from the indexers.
    """
    room = length + 4 * needles
    changes = {"as trained": None, "the whole window": {"sliding_window": room}, "every entry": {"index_topk": room}}
    model, right, asked = _opened(folder, "fp32", room, changes[reads]), 0, 0
    rng = random.Random(f"{seed}/{length}")
    for _ in range(documents):
        context, pairs = haystack(rng, length, needles, needles)
        prompt = list(context)
        for key, value in pairs:
            prompt += [ASK, key]
            right += _answer(model, prompt, keep=(len(context),)) == [value]
            asked += 1
            prompt.append(value)
    return right, asked


def sorting(folder: Path, mode: str, questions: int = 400, *, most: int = 12, seed: int = 7) -> tuple[int, int]:
    """(right, asked): whole lists, every number in its place."""
    model, right, rng = _opened(folder, mode, 64), 0, random.Random(seed)
    for _ in range(questions):
        values = rng.sample(range(SIZE), rng.randrange(4, most + 1))
        prompt = [BOS, *(VALUES + v for v in values), ASK]
        right += _answer(model, prompt, len(values)) == [VALUES + v for v in sorted(values)]
    return right, questions
