"""Generated tasks with worked-out thoughts: right answers, true steps, disjoint sets, bounded length."""

import itertools
import random
import re

import pytest
import tokenizers

from dsv4.posttraining.verifiers import reward
from recipes.nano.items import arithmetic, countdown, ordering, plain, problems, state, steps
from recipes.nano.items.item import Maker, draw
from tests.conftest import ROOT

MAKERS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        arithmetic.make_sum, arithmetic.make_difference, arithmetic.make_product, ordering.make_comparison,
        ordering.make_sort, ordering.make_extreme, ordering.make_count, problems.make_problem, state.make_swaps,
        state.make_moves, countdown.make_countdown3, countdown.make_countdown4, plain.make_mixed, plain.make_near,
    )
}  # fmt: skip
DRAWS = 300
# a chain such as 7+8=15+5=20, or 3-8-1+10=4: each value follows from the one before by the signs up to it
COMPARISON = re.compile(r"\d+\?\d+:(?:(#\d#\d[<>])|((?:\d\d[<>=])+))")
CHAIN = re.compile(r"[(\d-][\d+\-*()]*(?:=-?\d[\d+\-*]*)+")


def assert_true_steps(thought: str) -> int:
    """Every equation and comparison in the text holds; returns how many there are."""
    count = 0
    for counts, digits in COMPARISON.findall(thought):
        for left, right, sign in re.findall(r"#?(\d)#?(\d)([<>=])", counts + digits):
            assert sign == ("<" if left < right else ">" if left > right else "="), thought
            count += 1
    thought = COMPARISON.sub("", thought)
    for chain in CHAIN.findall(thought):
        sides = chain.split("=")
        for left, right in itertools.pairwise(sides):
            value = re.fullmatch(r"(-?\d+)[+*]?.*", right)
            whole = eval(right) if "*" in right else None  # a product is split into two: 47*36=47*6+47*30
            assert value is not None
            assert eval(left) in (int(value[1]), whole), chain
            count += 1
    for left, sign, right in re.findall(r"(?<![\d#])#?(\d+)([<>])#?(?=(\d+))", thought):
        assert (int(left) < int(right)) == (sign == "<"), thought
        assert left != right
        count += 1
    return count


@pytest.mark.parametrize("name", MAKERS)
def test_own_answers_pass_and_both_modes_end_in_it(name: str) -> None:
    rng = random.Random(name)
    items = [draw(MAKERS[name], rng, held_out=i % 2 == 0) for i in range(DRAWS)]
    for item in items:
        user, assistant = item.messages
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert reward(item.verifier, assistant["content"], item.answer) == 1.0
        assert item.deep is not None
        assert len(item.deep) > len(assistant["reasoning_content"])
        assert item.level >= 0
    assert len({item.question for item in items}) > 0.8 * DRAWS
    assert len({item.messages[0]["content"].lower().translate(_NO_DIGITS) for item in items}) >= 12
    # an answer to the neighbour's question is wrong most of the time: the verifier tells answers apart
    wrong = [reward(a.verifier, b.messages[1]["content"], a.answer) for a, b in itertools.pairwise(items)]
    assert sum(wrong) < 0.6 * DRAWS


_NO_DIGITS = str.maketrans("", "", "0123456789")


@pytest.mark.parametrize("name", MAKERS)
def test_held_out_questions_are_not_trained_on(name: str) -> None:
    rng = random.Random(f"sets {name}")
    trained = {draw(MAKERS[name], rng).question for _ in range(DRAWS)}
    held_out = {draw(MAKERS[name], rng, held_out=True).question for _ in range(DRAWS // 4)}
    assert not trained & held_out


@pytest.mark.parametrize("name", MAKERS)
def test_every_step_of_a_thought_is_true(name: str) -> None:
    rng = random.Random(f"steps {name}")
    counts = []
    for _ in range(DRAWS):
        item = MAKERS[name](rng)
        for thought in (item.messages[1]["reasoning_content"], item.deep or ""):
            counts.append(assert_true_steps(thought))
    if name not in ("make_sort", "make_extreme", "make_count", "make_swaps", "make_moves"):
        assert min(counts) > 0


@pytest.mark.parametrize(
    "false", ["7+8=14,4", "1+8=9+1=11", "3-8+10=6", "47*36=47*6+47*31", "417?471:44=17>", "7?23:#2#1<"]
)
def test_a_false_step_is_noticed(false: str) -> None:
    with pytest.raises(AssertionError):
        assert_true_steps(false)


def last_number(lines: list[str]) -> int:
    return int(re.split(r"[,:=\n]", lines[-1])[-1])


@pytest.mark.parametrize("seed", range(4))
def test_a_thought_ends_with_the_result(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(DRAWS):
        numbers = [arithmetic.whole(rng, 4) for _ in range(rng.randrange(2, 5))]
        assert last_number(steps.add(numbers)) == sum(numbers)
        low, high = sorted(numbers[:2])
        assert last_number(steps.subtract(high, low)) == high - low
        terms = [n * rng.choice((1, -1)) for n in numbers]
        assert last_number(steps.total(terms)) == sum(terms)
        a, b = rng.randrange(100), rng.randrange(100)
        assert last_number(steps.multiply(a, b)) == a * b


def test_swaps_and_moves_follow_their_words() -> None:
    rng = random.Random(3)
    for make in (state.make_swaps, state.make_moves):
        for _ in range(DRAWS):
            item = make(rng)
            row = list("12345")
            for _, swap, move in re.findall(r" ([a-p])(?:(\d\d)| ([LRVSE]))(?=[ .])", item.question):
                if swap:
                    i, j = int(swap[0]) - 1, int(swap[1]) - 1
                    row[i], row[j] = row[j], row[i]
                elif move == "L":
                    row.append(row.pop(0))
                elif move == "R":
                    row.insert(0, row.pop())
                elif move == "V":
                    row.reverse()
                else:
                    i = 0 if move == "S" else 3
                    row[i], row[i + 1] = row[i + 1], row[i]
            assert [int(x) for x in row] == item.answer


def test_think_max_searches_wider() -> None:
    rng = random.Random(4)
    for make in (countdown.make_countdown3, countdown.make_countdown4):
        short, long = 0, 0
        for _ in range(50):
            item = make(rng)
            short += len(item.messages[1]["reasoning_content"])
            long += len(item.deep or "")
        assert long > 1.5 * short


def test_a_systematic_search_ends_where_a_branch_reaches_the_target_and_nowhere_else() -> None:
    """Otherwise a model learns to end where it has found nothing."""
    rng = random.Random(11)
    for make, least in ((countdown.make_countdown3, 2), (countdown.make_countdown4, 6)):
        branches = longer = 0
        for _ in range(100):
            item = make(rng, systematic=True)
            *lines, back, end = item.messages[1]["reasoning_content"].splitlines()
            assert end == item.messages[1]["content"]
            assert reward(item.verifier, end, item.answer) == 1.0
            assert_true_steps(item.messages[1]["reasoning_content"])
            tried = [line for line in lines if ":" not in line]
            assert back.split(",")[0] == tried[-1].split(",")[-1]
            hits = [line.split(",")[-1].endswith(f"={item.answer['target']}") for line in tried]
            assert hits == [False] * (len(tried) - 1) + [True]
            first = [line for line in lines if line.count(" ") == len(item.answer["numbers"]) - 2 and ":" in line]
            assert len(set(first)) == len(first)
            before, *rest = (item.deep or "").split(item.messages[1]["reasoning_content"] + "\ncheck ")
            assert len(rest) == 1
            assert f"={item.answer['target']}\n" not in before
            assert len(before) < countdown.DEEPEST
            assert not set(first) & set(before.splitlines())
            assert_true_steps(before.removesuffix("\n"))
            longer += bool(before)
            branches += len(tried)
        # the whole search of three numbers is short enough for Think High
        assert longer > 20 if make is countdown.make_countdown4 else not longer
        assert branches > least * 100  # a search that knows the way has one to three


def test_lengths_in_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints mean and 95th percentile by task. A conversation stays within 512 tokens, Think High's within 256."""
    codec = tokenizers.Tokenizer.from_file(str(ROOT / "models" / "nano" / "tokenizer.json"))
    rng = random.Random(5)
    with capsys.disabled():
        print(f"\n{'task':16} question  thought  deep  answer (mean/p95 in tokens)")
        for make in MAKERS.values():
            items = [make(rng) for _ in range(DRAWS)]
            columns = []
            for texts, most in (
                ([i.question for i in items], 150),
                ([i.messages[1]["reasoning_content"] for i in items], 280),
                ([i.deep or "" for i in items], 460),
                ([i.messages[1]["content"] for i in items], 40),
            ):
                counts = sorted(len(codec.encode(text, add_special_tokens=False).ids) for text in texts)
                columns.append(f"{sum(counts) / DRAWS:.0f}/{counts[DRAWS * 95 // 100]}")
                assert counts[-1] <= most, (make.__name__, counts[-1])
            print(f"{make.__name__.removeprefix('make_'):16} " + "  ".join(columns))


def test_two_operations_have_their_usual_order() -> None:
    rng = random.Random(3)
    for _ in range(DRAWS):
        item = plain.make_mixed(rng)
        text = "".join(re.findall(r"[\d()+*x-]+", item.question.replace("Can you ", "").replace("exact", "")))
        thought = item.messages[-1]["reasoning_content"]
        written = thought.splitlines()[0]
        assert written == text.replace("x", "*").strip("=?") or " plus " in item.question
        assert eval(written) == item.answer >= 0


def test_the_larger_of_two_numbers_with_a_point() -> None:
    rng = random.Random(4)
    for _ in range(DRAWS):
        item = plain.make_decimals(rng)
        a, b = re.findall(r"\d+\.\d+", item.question)
        thought = item.messages[-1]["reasoning_content"]
        x, y, pairs = re.fullmatch(r"([\d.]+)\?([\d.]+):((?:\d\d[<>=])+)\n[\d.]+", thought).groups()
        assert (float(x), float(y)) == (float(a), float(b))
        assert len(x) == len(y)
        assert (pairs[-1] == ">") == (float(a) > float(b)) == (item.answer == a)


@pytest.mark.parametrize("make", [plain.make_things, plain.make_mine, plain.make_older])
def test_the_answer_to_a_plain_question_is_in_its_thought(make: Maker) -> None:
    rng = random.Random(5)
    for _ in range(DRAWS):
        item = make(rng)
        last = item.messages[-1]
        assert reward(item.verifier, last["content"], item.answer) == 1.0
        if item.answer != "do not know":
            assert item.answer in last["reasoning_content"]
            assert item.answer in item.question
