"""The example of docs/finetune.md: orders in plain English become one line of a fixed form.

    python -m recipes.finetune.orders write orders/          # orders/train.jsonl (100), orders/held_out.jsonl (200)
    python -m recipes.finetune.orders grade MODEL orders/held_out.jsonl [--adapter FOLDER]

Names, places, goods and wordings are the same in both files; no order is in both.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from dsv4.api.loading import load
from dsv4.cli.__main__ import sentence

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Karl", "Lena")
PLACES = ("London", "Paris", "Rome", "Berlin", "Oslo", "Madrid", "Vienna", "Boston", "Dublin", "Prague")
GOODS = ("books", "lamps", "chairs", "tables", "boxes", "cups", "pens", "bags", "clocks", "plates")
WORDINGS = (
    "Please send {n} {goods} to {name} in {place}.",
    "{name} from {place} wants {n} {goods}.",
    "We need {n} {goods} for {name}, {place}.",
    "Can {name} in {place} get {n} {goods}?",
    "{n} {goods}, please. The name is {name}, the city is {place}.",
)
TRAIN, HELD_OUT = 100, 200


def orders(count: int, seed: int = 7) -> list[tuple[str, str]]:
    """(order, line) pairs, all different."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        fields = {
            "name": rng.choice(NAMES),
            "place": rng.choice(PLACES),
            "goods": rng.choice(GOODS),
            "n": rng.randrange(2, 100),
        }
        found[rng.choice(WORDINGS).format(**fields)] = "{n} x {goods} | {name} | {place}".format(**fields)
    return list(found.items())


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    every = orders(TRAIN + HELD_OUT)
    for name, part in (("train", every[:TRAIN]), ("held_out", every[TRAIN:])):
        lines = [
            {"messages": [{"role": "user", "content": order}, {"role": "assistant", "content": line}]}
            for order, line in part
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def grade(model: Path, file: Path, adapter: Path | None) -> None:
    """How many answers are right, letter by letter, greedily and without thinking."""
    options = {} if adapter is None else {"adapter": adapter}
    talks = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    if wrong := [number for number, talk in enumerate(talks, 1) if len(talk) != 2]:
        raise ValueError(f"{file}, line {wrong[0]}: messages must be an order and its line")
    loaded = load(model, **options)
    right = 0
    for i, (order, line) in enumerate(talks):
        said = loaded.chat([order], thinking=False, temperature=0, max_tokens=64).content
        right += said == line["content"]
        if i < 3:
            print(f"{order['content']}\n    {said}")
    print(f"{right} of {len(talks)} right")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("write", "grade"))
    parser.add_argument("folder", type=Path, help="write: of the two files; grade: of the model")
    parser.add_argument("file", type=Path, nargs="?", help="grade: what to ask, as held_out.jsonl")
    parser.add_argument("--adapter", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "write":
            write(given.folder)
        elif given.file is None:
            parser.error("grade needs the file of what to ask")
        else:
            grade(given.folder, given.file, given.adapter)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{sentence(error)}\n")


if __name__ == "__main__":
    main()
