"""MMLU-Pro: 12,032 questions of 14 subjects with up to ten choices (Wang et al. 2024)."""

from dsv4.evals.answers import LETTERS, asked, choice_prompt, chosen_letter
from dsv4.evals.suite import Ask, HubData, Item, Published, Row, Suite, modes


def _item(row: Row, ask: Ask) -> Item:
    choices = [text for text in row["options"] if text != "N/A"]
    return Item(
        f"mmlu-pro-{row.get('question_id', ask.index)}",
        asked(choice_prompt(row["question"], choices)),
        LETTERS[int(row["answer_index"])],
        str(row.get("category", "")),
        data={"choices": len(choices)},
    )


SUITE = Suite(
    name="mmlu_pro",
    about="questions of 14 subjects with up to ten choices",
    item=_item,
    score=chosen_letter,
    files=("mmlu_pro*.jsonl", "test*.parquet", "test.jsonl"),
    hub=HubData("TIGER-Lab/MMLU-Pro", "527feea0afed1de15a8c115abf7be4c912123315", ("data/test-*.parquet",)),
    published=(
        *modes("V4-Pro", "report, table 7", 82.9, 87.1, 87.5),
        *modes("V4-Flash", "report, table 7", 83.0, 86.4, 86.2),
        Published("V4-Pro-Base", "", 73.5, "report, table 1", "base model, 5 shots"),
    ),
)
