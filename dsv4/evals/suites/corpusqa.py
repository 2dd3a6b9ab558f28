"""CorpusQA: questions over a corpus that no single document answers (Tongyi, 1,316 questions, 128K to 10M tokens).

The published grader is a model (deepseek-v3) that is shown the question and both answers; `--judge` does that, with the
published prompt. Without a judge the answer after "The answer is:" is compared: names as a set, or in order where the
question asks for one, and numbers as numbers. The corpora made here are graded so, their answers being exact.
"""

import re
from collections.abc import Iterator

from dsv4.evals.long_prompts import label
from dsv4.evals.suite import Answer, Ask, Generate, Item, ModelGrader, Row, Score, Suite, modes
from dsv4.evals.table_corpus import QUESTIONS, corpus_row

# as published with the data
_SYSTEM = (
    "You are an expert in verifying if two answers are the same.\n"
    "Your input is a problem and two answers, Answer 1 and Answer 2. You need to check if they are equivalent.\n"
    "Your task is to determine if two answers are equivalent, without attempting to solve the original problem.\n"
    "Compare the answers to verify they represent identical values or meaning, even when written in different forms "
    "or notations.\n\n"
    "Your output must follow the following format:\n"
    "1) Provide an explanation for why the answers are equivalent or not.\n"
    "2) Then provide your final answer in the form of: [[YES]] or [[NO]]\n"
)
_ASKED = "\nProblem: {problem}\nAnswer 1: {found}\nAnswer 2: {right}\n"
_LENGTHS = (2**17, 2**20)  # of the published settings, those that fit V4's context


def _item(row: Row, ask: Ask) -> Item:
    group = row.get("level") or re.sub(r"_?\d+$", "", str(row["id"]))
    if "length" in row:
        group = f"{label(row['length'])}, {group}"
    messages = tuple({"role": turn["role"], "content": turn["content"]} for turn in row["prompt"])
    return Item(str(row["id"]), messages, str(row["answer"]), group=group, data={"question": row["question"]})


def extracted(answer: str) -> str:
    """What stands after the last "The answer is:", else the whole answer."""
    found = re.findall(r"(?i)the answer is:?[ \t]*(.*)", answer)
    return (found[-1] if found else answer).strip()


def same(answer: str, expected: str, *, ordered: bool) -> bool:
    """Whether two lists of names or numbers are the same but for case, spaces, brackets and a full stop at the end."""
    left, right = _parts(answer), _parts(expected)
    return left == right if ordered else sorted(left) == sorted(right)


def _parts(text: str) -> list[str]:
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.casefold())
    parts = [re.sub(r"^[\s\[\](){}*\"'`.:]+|[\s\[\](){}*\"'`.:]+$", "", part) for part in re.split(r",| and |\n", text)]
    return [f"{float(part):g}" if re.fullmatch(r"-?\d+(\.\d+)?", part) else part for part in parts if part]


def _score(item: Item, answer: Answer) -> Score:
    found = extracted(answer.content)
    ordered = "first" in item.data["question"]
    return Score(float(same(found, item.target, ordered=ordered)), found, f"expected {item.target}")


def _verdict(text: str) -> Score:
    return Score(float("[[YES]]" in text and "[[NO]]" not in text), why=text)


def _judge_prompt(item: Item, answer: Answer) -> str:
    question = _ASKED.format(problem=item.data["question"], found=extracted(answer.content), right=item.target)
    return _SYSTEM + question


def _generate(wanted: Generate) -> Iterator[Row]:
    lengths = wanted.lengths or ((800,) if wanted.small else _LENGTHS)
    for length in lengths:
        for number in range(wanted.each(len(lengths), len(QUESTIONS) * (1 if wanted.small else 5))):
            seed = f"{wanted.seed}-{length}-{number}"
            yield {**corpus_row(length, wanted.count_tokens, seed, number), "length": length}


SUITE = Suite(
    name="corpusqa",
    about="questions over a corpus of reports that no single one answers",
    item=_item,
    score=_score,
    judge=ModelGrader(_judge_prompt, _verdict),
    generate=_generate,
    by_length=True,
    files=("*1m*.jsonl", "*1M*.jsonl", "*.jsonl"),
    published=(
        *modes("V4-Pro", "report, table 7", 35.6, 56.5, 62.0, setting="the data of 1M tokens, graded by a model"),
        *modes("V4-Flash", "report, table 7", 15.5, 59.3, 60.5, setting="the data of 1M tokens, graded by a model"),
    ),
)
