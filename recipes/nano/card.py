"""The finished model's folder: the weights of the last run, its example prompts, and a card with every figure.

    .venv/bin/python -m recipes.nano.card runs/nano

reads runs/nano/{distill,grade,numerics} and what is known of the stages, and makes runs/nano/card, the folder that
`models/nano` is replaced by.
"""

import argparse
import json
import shutil
from pathlib import Path
from textwrap import fill
from typing import Any

import dsv4
from dsv4.cli.recipe_chain import RECORD, Chain
from dsv4.encoding import Tokenizer
from dsv4.files import whole_folder, write_whole
from dsv4.model.accounting import parameters
from recipes.nano.dialogues import answered, dialogues, example_prompts
from recipes.nano.grade import FIGURES, SHEET, table
from recipes.nano.grading.abilities import missed
from recipes.nano.grading.figures import percent

FOLDER = Path(__file__).parent
TEXT = FOLDER / "chain" / "card.md"
TEMPERATURE = 0.3  # what the folder recommends: at 1.0 a model this small slips in its sums


def make(run: Path) -> Path:
    """Write RUN/card in one piece. Raises FileNotFoundError naming what a stage before has not made."""
    with whole_folder(run / "card") as folder:
        shutil.copytree(run / "distill" / "model", folder)
        said = dialogues()
        file = folder / "generation_config.json"
        advice = json.loads(file.read_text(encoding="utf-8"))
        advice |= {"temperature": TEMPERATURE, "dialect": Tokenizer.load(folder).dialect.name}
        advice["example_prompts"] = example_prompts()
        _write(file, json.dumps(advice, indent=2) + "\n")
        for name in (FIGURES, SHEET):
            shutil.copy(run / "grade" / name, folder / name)
        _write(folder / "README.md", card(run, folder, said))
    return run / "card"


def _write(file: Path, text: str) -> None:
    write_whole(file, lambda out: out.write(text.encode()))


def card(run: Path, folder: Path, said: list[list[str]]) -> str:
    """The model card, README.md of the folder."""
    model = dsv4.load(folder, "fp32", context_length=8192)
    rows: dict[str, Any] = _rows(run / "grade" / FIGURES)
    counts = parameters(model.config)
    missing = [f"{bar.row}, {bar.mode}" for bar in missed(rows)]
    return TEXT.read_text(encoding="utf-8").format(
        total=counts.total / 1e6,
        active=counts.active / 1e6,
        size=sum(file.stat().st_size for file in folder.iterdir()) / 2**20,
        vocabulary=model.tokenizer.vocab_size,
        stages=_stages(run),
        figures=table(rows),
        missed=fill("; ".join(missing) or "none", 118),
        numerics=_numerics(rows, _rows(run / "numerics" / FIGURES)),
        dialogues=answered(model, said),
    )


def _rows(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))["rows"]


def _stages(run: Path) -> str:
    """How long each stage took; a stage without a record was not run for these weights."""
    chain = Chain.from_file(FOLDER / "chain" / "chain.toml")
    file = run / RECORD
    taken = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    lines = ["| stage | minutes | |", "|---|---:|---|"]
    for stage in chain.stages:
        seconds = taken.get(stage.name, {}).get("seconds")
        if stage.name != "card":
            minutes = "not run" if seconds is None else f"{seconds / 60:.0f}"
            lines.append(f"| {stage.name} | {minutes} | {stage.about} |")
    return "\n".join(lines)


def _numerics(stored: dict[str, Any], released: dict[str, Any]) -> str:
    """Rows that were graded in both numerics."""
    lines = ["| ability | mode | stored weights in fp32, % | released numerics, % |", "|---|---|---:|---:|"]
    for name, modes in released.items():
        for mode, row in modes.items():
            if mode in stored.get(name, {}):
                lines.append(f"| {name} | {mode} | {percent(stored[name][mode])} | {percent(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    print(make(parser.parse_args().run))


if __name__ == "__main__":
    main()
