"""Grade a model folder on held-out questions through its own server, as users talk with it.

    .venv/bin/python -m recipes.nano.grade models/nano --out runs/nano/grade

Writes accuracy.json (every figure) and small_talk.md (a sheet to grade by hand) to the folder `--out`, and prints the
table. A grading that was stopped goes on with the rows that are missing.
"""

import argparse
import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dsv4
from dsv4.cli.__main__ import sentence
from dsv4.encoding import Tokenizer
from dsv4.files import write_whole
from recipes.nano.grading import english, sheet
from recipes.nano.grading.abilities import BARS, judged
from recipes.nano.grading.figures import percent
from recipes.nano.grading.needles import ROOM
from recipes.nano.grading.plan import NEEDLES, Plan
from recipes.nano.grading.run import Figures, Grading, Progress, Rows
from recipes.nano.grading.server import served
from recipes.nano.items.needles import LONGEST

FIGURES, SHEET = "accuracy.json", "small_talk.md"


def grade(folder: Path, out: Path, plan: Plan) -> Rows:
    """Grade what is missing in `out`, and give all rows."""
    out.mkdir(parents=True, exist_ok=True)
    kept = Figures(out / FIGURES, plan, weights_name(folder))
    tokenizer = Tokenizer.load(folder)
    with Progress(_questions(plan, kept)) as progress:
        if not _has_all(plan, kept) or (plan.wants("small talk") and not (out / SHEET).exists()):
            flags = ["--sequences", str(plan.concurrent), "--mode", plan.mode]
            with served(folder, flags) as url:
                asyncio.run(_short(url, plan, kept, progress, out / SHEET, folder.resolve().name))
        if plan.wants("needles") and any(not kept.has("needles", str(length)) for length in plan.needles):
            context = min(LONGEST, max(plan.needles) + ROOM)
            flags = ["--context", str(context), "--sequences", str(min(8, plan.concurrent)), "--mode", plan.mode]
            with served(folder, flags) as url:
                asyncio.run(_long(url, plan, kept, progress, tokenizer))
        if plan.wants("english") and not kept.has("english", "python"):
            progress.row("english")
            model = dsv4.load(folder, plan.mode, context_length=8192)
            for name, texts in english.held_out_texts(plan.seed).items():
                kept.put("english", name, english.bits_per_byte(model, texts, progress.step))
    text = table(kept.rows)
    write_whole(out / "accuracy.md", lambda file: file.write(text.encode()))
    return kept.rows


def weights_name(folder: Path) -> str:
    """What the figures are of: the folder, and when its weights were written."""
    index = folder / "model.safetensors.index.json"
    return f"{folder.resolve().name} {index.stat().st_mtime_ns if index.exists() else 0}"


def _has_all(plan: Plan, kept: Figures) -> bool:
    rows = all(kept.has(ability.name, effort) for ability in plan.abilities() for effort in ability.efforts)
    return rows and (not plan.wants("small talk") or kept.has("small talk", "high"))


def _questions(plan: Plan, kept: Figures) -> int:
    """How many are to be asked."""
    total = 0
    for ability in plan.abilities():
        missing = sum(not kept.has(ability.name, effort) for effort in ability.efforts)
        total += missing * plan.count(ability)
    if plan.wants("needles"):
        total += sum(count for length, count in plan.needles.items() if not kept.has("needles", str(length)))
    if plan.wants("small talk") and not kept.has("small talk", "high"):
        total += len(sheet.wordings())
    if plan.wants("english") and not kept.has("english", "python"):
        total += sum(map(len, english.held_out_texts(plan.seed).values()))
    return total


async def _short(url: str, plan: Plan, kept: Figures, progress: Progress, page: Path, model: str) -> None:
    grading = Grading(url, plan, kept, progress)
    try:
        await grading.abilities()
        if plan.wants("small talk"):
            await grading.small_talk(page, model)
    finally:
        await grading.close()


async def _long(url: str, plan: Plan, kept: Figures, progress: Progress, tokenizer: Tokenizer) -> None:
    grading = Grading(url, plan, kept, progress)
    try:
        for length, count in plan.needles.items():
            await grading.needles(length, count, tokenizer)
    finally:
        await grading.close()


def table(rows: Rows) -> str:
    """Every figure in Markdown: a row each, then by kind."""
    lines = ["| ability | mode | right, % | tokens | cut, % | questions | bar |", "|---|---|---:|---:|---:|---:|---|"]
    for name, modes in rows.items():
        if name == "english":
            continue
        for mode, row in modes.items():
            lines.append(
                f"| {name} | {_mode(name, mode)} | {percent(row)} | {_number(row['tokens'])} | "
                f"{_number(row['cut'], 100)} | {row['n']} | {_bar(name, mode, rows)} |"
            )
    lines += ["", "| ability | kind | mode | right, % | questions |", "|---|---|---|---:|---:|"]
    for name, modes in rows.items():
        for mode, row in modes.items():
            for kind, found in row.get("kinds", {}).items():
                if name not in ("needles", "small talk"):
                    lines.append(f"| {name} | {kind} | {_mode(name, mode)} | {percent(found)} | {found['n']} |")
    for mode, row in rows.get("tools", {}).items():
        counts = row["counts"]
        valid = 100 * counts["valid"] / max(1, counts["calls"])
        lines += [
            "",
            f"Tools, {mode}: {valid:.1f} % of {counts['calls']} calls valid, {counts['malformed']} malformed.",
        ]
    for name, row in rows.get("english", {}).items():
        text = f"{row['bits_per_byte']:.3f} bits per byte ({row['bytes']:,} bytes)"
        lines += ["", f"Plain English, {name}, held out: {text}."]
    return "\n".join(lines) + "\n"


def _mode(name: str, mode: str) -> str:
    return f"{int(mode):,} tokens" if name == "needles" else mode


def _number(value: float | None, times: int = 1) -> str:
    return "-" if value is None else f"{value * times:.0f}"


def _bar(name: str, mode: str, rows: Rows) -> str:
    for bar in BARS:
        if (bar.row, bar.mode) == (name, mode):
            bound = f"≥ {bar.least:g}" if bar.least is not None else f"≤ {bar.most:g}"
            return f"{bound}: {'reached' if judged(bar, rows) else 'missed'}"
    return ""


def read_needles(text: str) -> dict[int, int]:
    """`4096:200,65536:48`: questions by length. Raises ValueError for another form."""
    found: dict[int, int] = {}
    for part in filter(None, text.split(",")):
        length, colon, count = part.partition(":")
        if not (colon and length.isdigit() and count.isdigit()):
            raise ValueError(f"--needles must be LENGTH:QUESTIONS,..., got {text!r}")
        found[int(length)] = int(count)
    return found


def read_rows(text: str) -> tuple[str, ...]:
    """`arithmetic,countdown, pass@8`: names of rows; a comma before a space belongs to a name."""
    return tuple(filter(None, re.split(",(?! )", text)))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    defaults = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="default: FOLDER")
    parser.add_argument("--items", type=int, default=defaults.items, help="of each ability")
    parser.add_argument("--pass-items", type=int, default=defaults.pass_items, help="of those with eight answers each")
    text = ",".join(f"{length}:{count}" for length, count in NEEDLES.items())
    parser.add_argument("--needles", default=text, help="questions by tokens of the text")
    parser.add_argument("--needle-minutes", type=float, default=defaults.needle_minutes, help="for each length at most")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--mode", default=defaults.mode, choices=("fp32", "bf16", "release"))
    parser.add_argument("--only", default="", help="rows, with commas between them")
    parser.add_argument("--concurrent", type=int, default=defaults.concurrent, help="requests at once")
    given = parser.parse_args(arguments)
    try:
        plan = Plan(
            given.items,
            given.pass_items,
            read_needles(given.needles),
            given.needle_minutes,
            given.seed,
            given.mode,
            read_rows(given.only),
            given.concurrent,
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        rows = grade(given.folder, given.out or given.folder, plan)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{sentence(error)}\n")
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
