"""Corpora of reports with questions over all of them, and exact answers: a look-alike of CorpusQA.

CorpusQA joins hundreds of real documents and asks what no single one answers: filters, rankings, sums over all. Its
answers come from SQL over a table of what the documents say. Here table and documents are made together: each document
is a short report of one invented firm, in sentences of several wordings, and the answer is computed from the table.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.evals.long_prompts import Count, fit, sentences
from dsv4.evals.words import distinct, name

BRANCHES = ("shipping", "farming", "printing", "mining", "weaving")
_REVENUE = ("Revenue of the year was {} million.", "In that year it took in {} million.", "Sales came to {} million.")
_STAFF = ("It employs {} people.", "At the end of the year {} people worked there.", "Staff: {}.")
_FOUNDED = ("It was founded in {}.", "The firm goes back to {}.", "Its first year was {}.")
PROMPT = (
    "You are given reports of {count} firms. Answer the question from what they say.\n\n{documents}\n\n"
    "Question: {question}\nEnd with one line of the form: The answer is: ANSWER. Separate several names by commas; "
    "write [] if there is none."
)


@dataclass(frozen=True, slots=True)
class Firm:
    """A row of the table. revenue: millions."""

    name: str
    branch: str
    revenue: int
    staff: int
    founded: int


Answered = tuple[str, str, str]  # level, question, answer


def corpus_row(tokens: int, count: Count, seed: str, kind: int) -> dict[str, Any]:
    """A row of CorpusQA (id, prompt, question, answer; level besides) of about `tokens` tokens. kind: which question,
    modulo their number. Raises ValueError if a corpus of three firms is longer."""
    return fit(lambda more: _row(3 + more, seed, kind), lambda row: row["prompt"][0]["content"], tokens, count)


def _row(firms: int, seed: str, kind: int) -> dict[str, Any]:
    chance = random.Random(seed)
    # what the question draws must not depend on the number of firms
    asking = random.Random(f"{seed}/question")
    names = distinct(lambda: f"{name(chance)} {name(chance)}", firms)
    revenues = random.Random(f"{seed}/revenue").sample(range(100, 100 + 20 * firms), firms)
    table = [
        Firm(each, chance.choice(BRANCHES), revenue, chance.randrange(20, 5000), chance.randrange(1900, 2020))
        for each, revenue in zip(names, revenues, strict=True)
    ]
    level, question, answer = QUESTIONS[kind % len(QUESTIONS)](table, asking)
    documents = "\n\n".join(_report(number, firm, seed) for number, firm in enumerate(table, start=1))
    content = PROMPT.format(count=firms, documents=documents, question=question)
    prompt = [{"role": "user", "content": content}]
    return {"id": f"corpus-{seed}-{kind}", "prompt": prompt, "question": question, "answer": answer, "level": level}


def _report(number: int, firm: Firm, seed: str) -> str:
    chance = random.Random(f"{seed}/{firm.name}")
    facts = [
        chance.choice(_REVENUE).format(firm.revenue), chance.choice(_STAFF).format(firm.staff),
        chance.choice(_FOUNDED).format(firm.founded), f"Its trade is {firm.branch}.",
    ]  # fmt: skip
    chance.shuffle(facts)
    between = sentences(len(facts), chance.randrange(2**32))
    body = " ".join(part for both in zip(facts, between, strict=True) for part in both)
    return f"Report {number}: {firm.name}\n{body}"


def _names(firms: Sequence[Firm]) -> str:
    return ", ".join(firm.name for firm in firms) or "[]"


def _largest(table: Sequence[Firm], chance: random.Random) -> Answered:
    best = max(table, key=lambda firm: firm.revenue)
    return "easy", "Which firm had the largest revenue?", best.name


def _top_three(table: Sequence[Firm], chance: random.Random) -> Answered:
    best = sorted(table, key=lambda firm: -firm.revenue)[:3]
    return "medium", "Which three firms had the largest revenues, the largest first?", _names(best)


def _count_of_branch(table: Sequence[Firm], chance: random.Random) -> Answered:
    branch = chance.choice(BRANCHES)
    number = sum(firm.branch == branch for firm in table)
    return "easy", f"How many firms are in {branch}?", str(number)


def _sum_of_branch(table: Sequence[Firm], chance: random.Random) -> Answered:
    branch = chance.choice(BRANCHES)
    total = sum(firm.revenue for firm in table if firm.branch == branch)
    return "medium", f"What is the total revenue of all firms in {branch}, in millions?", str(total)


def _filter(table: Sequence[Firm], chance: random.Random) -> Answered:
    branch, year = chance.choice(BRANCHES), chance.randrange(1960, 2000)
    found = [firm for firm in table if firm.branch == branch and firm.founded > year and firm.staff < 1000]
    question = f"Which firms in {branch} were founded after {year} and have fewer than 1000 people?"
    return "medium", question, _names(found)


def _per_head(table: Sequence[Firm], chance: random.Random) -> Answered:
    best = max(table, key=lambda firm: (firm.revenue / firm.staff, firm.name))
    return "hard", "Which firm had the largest revenue for each person that it employs?", best.name


def _above_the_mean(table: Sequence[Firm], chance: random.Random) -> Answered:
    mean = sum(firm.staff for firm in table) / len(table)
    number = sum(firm.staff > mean for firm in table)
    return "hard", "How many firms employ more people than the mean of all firms?", str(number)


QUESTIONS: tuple[Callable[[Sequence[Firm], random.Random], Answered], ...] = (
    _largest, _top_three, _count_of_branch, _sum_of_branch, _filter, _per_head, _above_the_mean,
)  # fmt: skip
