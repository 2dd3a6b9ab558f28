"""RULER: thirteen tasks over long texts, from a needle to variable tracking, by length (arXiv 2404.06654).

Everything is made here, at the lengths that the user asks for, counted with the endpoint's tokenizer (see
`dsv4/evals/ruler_tasks.py` for what is as published). Published budgets are 30 to 128 tokens an answer, for models that
do not think; here an answer gets the budget of its mode. The figures are means over lengths of each task.
"""

from collections.abc import Iterator, Mapping, Sequence

from dsv4.evals.answers import asked
from dsv4.evals.long_prompts import LENGTHS, Count, fit, label
from dsv4.evals.ruler_tasks import TASKS, share_named
from dsv4.evals.statistics import grouped, mean_value
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Item, Row, Score, Suite


def _item(row: Row, ask: Ask) -> Item:
    return Item(
        f"ruler-{ask.index}",
        asked(row["prompt"]),
        list(row["answers"]),
        group=label(row["length"]),
        data={"task": row["task"], "length": row["length"], "any_of": row["any_of"]},
    )


def _score(item: Item, answer: Answer) -> Score:
    value = share_named(answer.content, tuple(item.target), any_of=item.data["any_of"])
    return Score(value, answer.content[:200], "" if value == 1 else f"expected {', '.join(item.target)}")


def _summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    tasks = grouped(graded, lambda one: one.data["task"])
    return {task: mean_value(tasks[task]) for task in TASKS if task in tasks}


def _generate(wanted: Generate) -> Iterator[Row]:
    lengths = wanted.lengths or ((2000,) if wanted.small else LENGTHS)
    for length in lengths:
        for task in TASKS:
            for again in range(wanted.each(len(lengths) * len(TASKS), 1 if wanted.small else 20)):
                yield _row(task, length, f"ruler/{wanted.seed}/{length}/{task}/{again}", wanted.count_tokens)


def _row(task: str, length: int, seed: str, count: Count) -> Row:
    found = fit(lambda size: TASKS[task](size, seed), lambda question: question.prompt, length, count)
    return {
        "task": task, "length": length, "prompt": found.prompt, "answers": list(found.answers), "any_of": found.any_of,
    }  # fmt: skip


SUITE = Suite(
    name="ruler",
    about="thirteen tasks over long texts: needles, variables, common words, questions",
    item=_item,
    score=_score,
    summary=_summary,
    generate=_generate,
    by_length=True,
    axes=("task", "length"),
)
