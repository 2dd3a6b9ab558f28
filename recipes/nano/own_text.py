"""What a model says itself: answers of a folder to the generated prompts, for a draft head to learn from.

    .venv/bin/python -m recipes.nano.own_text runs/nano/own_text.jsonl --answers 600
    .venv/bin/dsv4 train recipes/nano/draft.toml --folder runs/nano/draft

A line of the file is one answer as token ids: {"prompt": [...], "answer": [...]}.
"""

import argparse
import json
import random
from functools import lru_cache
from pathlib import Path

from dsv4.api.loading import load
from dsv4.encoding import Tokenizer
from dsv4.files import write_whole
from dsv4.generation import SamplingParams
from dsv4.training.documents import Document
from recipes.nano.prompts import prompt

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
EFFORTS = {"high": 3.0, "non-think": 1.0}


def document(rng: random.Random, codec: Tokenizer, path: str, length: int = 1024) -> Document:
    """One of the file's answers after its prompt, of which the answer is learned; cut at `length` tokens. Prompts that
    leave no room for an answer are not drawn."""
    answer = rng.choice(_answers(path, length))
    tokens = [*answer["prompt"], *answer["answer"]]
    learn = [0.0] * len(answer["prompt"]) + [1.0] * len(answer["answer"])
    return Document(tokens[:length], learn[:length])


@lru_cache(maxsize=2)
def _answers(path: str, length: int) -> list[dict[str, list[int]]]:
    """Those whose prompts leave room in `length` tokens. Raises ValueError for a file that is not there, with the
    command that makes it."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such file; python -m recipes.nano.own_text {file} makes it")
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [answer for answer in found if len(answer["prompt"]) + 2 <= length]


def answers(folder: Path, count: int, seed: int, longest: int) -> list[dict[str, list[int]]]:
    """Sampled answers at temperature 1, many at the same time."""
    model = load(folder, context_length=2048, sequences=16, queue=max(1024, count))
    rng, engine = random.Random(seed), model.engine
    requests = []
    while len(requests) < count:
        tokens = list(prompt(rng, model.tokenizer, efforts=EFFORTS).tokens)
        if len(tokens) <= 2048 - longest:
            params = SamplingParams(max_tokens=longest, temperature=1.0, seed=len(requests))
            requests.append(engine.submit(tokens, params))
    while engine.busy:
        engine.step()
    cut = [(request.tokens[: request.prompt_length], request.tokens[request.prompt_length :]) for request in requests]
    return [{"prompt": asked, "answer": said} for asked, said in cut]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", type=Path, default=NANO, help="a folder; default: the bundled model")
    parser.add_argument("--answers", type=int, default=600)
    parser.add_argument("--longest", type=int, default=512, help="tokens of an answer")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    made = answers(arguments.model, arguments.answers, arguments.seed, arguments.longest)
    text = "".join(json.dumps(answer) + "\n" for answer in made)
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.file, lambda out: out.write(text.encode()))
    print(f"{arguments.file}: {len(made):,} answers, {sum(len(a['answer']) for a in made):,} tokens")


if __name__ == "__main__":
    main()
