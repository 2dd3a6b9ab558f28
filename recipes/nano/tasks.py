"""Generated conversations for the first bundled model: sums, comparisons, facts from the prompt, small talk.

Every example carries a written-out thought, so the same question can be asked with thinking on and off. Train and
held-out questions are told apart by a hash of the question, so no held-out question is ever trained on.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

HELD_OUT_SHARE = 32  # one question in this many is held out


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its thought and answer. `key` is the part of the answer a grader looks for."""

    task: str
    question: str
    thought: str
    answer: str
    key: str

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.question.encode()) % HELD_OUT_SHARE == 0


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _digits(rng: random.Random) -> int:
    return rng.choice((1, 2, 2, 3, 3))


def _add(rng: random.Random) -> Example:
    a, b = _number(rng, _digits(rng)), _number(rng, _digits(rng))
    form = rng.choice(
        (
            "What is {} + {}?",
            "{} + {} = ?",
            "Add {} and {}.",
            "What is the sum of {} and {}?",
            "How much is {} plus {}?",
            "{} + {}",
            "Calculate {} + {}.",
            "what is {} plus {}",
        )
    )
    steps, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for place in range(width):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        with_carry = f" + {carry}" if carry else ""
        steps.append(f"{x} + {y}{with_carry} = {total}, write {total % 10}, carry {total // 10}.")
        carry = total // 10
    thought = f"{a} + {b}: from the right. " + " ".join(steps) + f" Together {a + b}."
    return Example("add", form.format(a, b), thought, f"{a} + {b} = {a + b}", str(a + b))


def _subtract(rng: random.Random) -> Example:
    a, b = sorted((_number(rng, _digits(rng)), _number(rng, _digits(rng))), reverse=True)
    form = rng.choice(
        (
            "What is {} - {}?",
            "{} - {} = ?",
            "How much is {} minus {}?",
            "{} - {}",
            "Calculate {} - {}.",
            "what is {} minus {}",
        )
    )
    steps, borrow = [], 0
    for place in range(len(str(a))):
        x, y = a // 10**place % 10, b // 10**place % 10
        low = x - y - borrow
        with_borrow = f" - {borrow}" if borrow else ""
        result = f"{low}" if low >= 0 else f"{low}, plus 10 is {low + 10}"
        borrow = int(low < 0)
        steps.append(f"{x} - {y}{with_borrow} = {result}, borrow {borrow}.")
    thought = f"{a} - {b}: from the right. " + " ".join(steps) + f" Together {a - b}."
    return Example("subtract", form.format(a, b), thought, f"{a} - {b} = {a - b}", str(a - b))


def _compare(rng: random.Random) -> Example:
    digits = rng.choice((2, 3, 3, 4))
    a = _number(rng, digits)
    b = _number(rng, digits if rng.random() < 0.8 else max(1, digits - 1))
    if rng.random() < 0.3:  # close calls
        b = max(0, a + rng.choice((-10, -1, 1, 10)))
    if a == b:
        b = a + 1
    larger = rng.random() < 0.6
    word, winner = ("larger", max(a, b)) if larger else ("smaller", min(a, b))
    form = rng.choice(("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "{a} or {b}, which is {w}?"))
    if len(str(a)) != len(str(b)):
        more = max(a, b)
        reason = f"{more} has more digits, so {more} is larger."
    else:
        place = next(i for i, (x, y) in enumerate(zip(str(a), str(b), strict=True)) if x != y)
        reason = f"They differ at digit {place + 1}: {str(a)[place]} and {str(b)[place]}. So {max(a, b)} is larger."
    question = form.format(w=word, a=a, b=b)
    return Example("compare", question, f"{a} and {b}: {reason}", f"{winner} is {word}.", str(winner))


NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ida",
    "Jonas",
    "Kate",
    "Leo",
    "Maria",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Victor",
    "Wendy",
    "Yusuf",
    "Zoe",
    "Omar",
    "Lucy",
    "Mark",
    "Nina",
    "Oscar",
    "Petra",
    "Simon",
]
PLACES = [
    "Oslo",
    "Paris",
    "Rome",
    "Lima",
    "Cairo",
    "Tokyo",
    "Delhi",
    "Berlin",
    "Madrid",
    "Vienna",
    "Quito",
    "Seoul",
    "Dublin",
    "Prague",
    "Athens",
    "Lisbon",
    "Havana",
    "Kyoto",
    "Boston",
    "Geneva",
]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "purple", "orange", "pink", "brown"]
THINGS = [
    "kite",
    "bike",
    "boat",
    "hat",
    "coat",
    "car",
    "lamp",
    "bag",
    "cup",
    "ball",
    "drum",
    "chair",
    "book",
    "ring",
    "clock",
]
ANIMALS = ["dog", "cat", "horse", "rabbit", "parrot", "goat", "duck", "snake", "turtle", "mouse"]
JOBS = ["baker", "teacher", "doctor", "farmer", "pilot", "painter", "singer", "driver", "nurse", "cook"]
FOODS = ["apples", "bread", "rice", "soup", "pasta", "cheese", "grapes", "honey", "nuts", "beans"]


@dataclass(frozen=True, slots=True)
class _Fact:
    statement: str
    question: str
    key: str


def _fact(rng: random.Random, name: str) -> _Fact:
    kind = rng.randrange(6)
    if kind == 0:
        place = rng.choice(PLACES)
        return _Fact(f"{name} lives in {place}.", f"Where does {name} live?", place)
    if kind == 1:
        colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
        return _Fact(f"{name} has a {colour} {thing}.", f"What colour is {name}'s {thing}?", colour)
    if kind == 2:
        animal = rng.choice(ANIMALS)
        return _Fact(f"{name} owns a {animal}.", f"Which animal does {name} own?", animal)
    if kind == 3:
        job = rng.choice(JOBS)
        return _Fact(f"{name} works as a {job}.", f"What is {name}'s job?", job)
    if kind == 4:
        food = rng.choice(FOODS)
        return _Fact(f"{name} likes {food}.", f"What does {name} like?", food)
    age = rng.randrange(5, 90)
    return _Fact(f"{name} is {age} years old.", f"How old is {name}?", str(age))


def _facts(rng: random.Random, most: int = 8) -> Example:
    count = rng.randrange(1, most + 1)
    facts = [_fact(rng, name) for name in rng.sample(NAMES, count)]
    asked = rng.choice(facts)
    text = " ".join(fact.statement for fact in facts)
    order = rng.random()
    question = f"{text} {asked.question}" if order < 0.8 else f"{asked.question} {text}"
    thought = f"The text says: {asked.statement}"
    return Example("facts", question, thought, asked.statement, asked.key)


def _long_facts(rng: random.Random) -> Example:
    example = _facts(rng, most=len(NAMES))
    return Example("long_facts", example.question, example.thought, example.answer, example.key)


def _sort(rng: random.Random) -> Example:
    numbers = [rng.randrange(100) for _ in range(rng.randrange(2, 6))]
    text = rng.choice((" ", ", ")).join(map(str, numbers))
    form = rng.choice(("Sort {}.", "Sort these numbers: {}.", "Put {} in order.", "Sort {}"))
    ordered, rest, steps = sorted(numbers), list(numbers), []
    for value in ordered:
        steps.append(f"The smallest of {', '.join(map(str, rest))} is {value}.")
        rest.remove(value)
    answer = ", ".join(map(str, ordered))
    return Example("sort", form.format(text), " ".join(steps), answer, answer)


def _repeat(rng: random.Random) -> Example:
    pool = [*COLOURS, *THINGS, *ANIMALS, *FOODS, *PLACES, *NAMES]
    words = " ".join(rng.choice(pool) for _ in range(rng.randrange(1, 7)))
    form = rng.choice(("Repeat: {}", "Say: {}", "Repeat after me: {}", "Please say: {}"))
    return Example("repeat", form.format(words), f"I should repeat: {words}", words, words)


_ABOUT = "I am nano, a very small DeepSeek-V4 model that was trained on two CPU cores."
_CAN = (
    "I can add, subtract, compare and sort small numbers, repeat words, and answer questions about facts you tell me."
)
SMALL_TALK: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (
        (
            "Hello",
            "Hi",
            "Hello!",
            "Hi!",
            "Hey",
            "Hi there",
            "Good morning",
            "Hello there!",
            "Good evening",
            "hello",
            "hi",
        ),
        "The user greets me.",
        "Hello! How can I help you?",
        "Hello!",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "Who are you",
            "Introduce yourself.",
            "who are you?",
        ),
        "The user asks who I am.",
        _ABOUT,
        "nano",
    ),
    (
        ("What is your name?", "What's your name?", "Your name?", "what is your name"),
        "The user asks my name.",
        "My name is nano.",
        "nano",
    ),
    (
        (
            "What can you do?",
            "How can you help me?",
            "What are you good at?",
            "Help",
            "What can I ask you?",
            "what can you do",
        ),
        "The user asks what I can do.",
        _CAN,
        "add, subtract",
    ),
    (
        ("How are you?", "How are you today?", "How is it going?", "How do you do?", "how are you"),
        "The user asks how I am.",
        "I am fine, thank you. What shall we work on?",
        "fine",
    ),
    (
        ("Thank you", "Thanks!", "Thank you!", "Thanks a lot.", "thanks", "Great, thanks!"),
        "The user thanks me.",
        "You are welcome!",
        "welcome",
    ),
    (
        ("Bye", "Goodbye!", "See you later.", "Good night", "bye", "Goodbye"),
        "The user says goodbye.",
        "Goodbye!",
        "Goodbye",
    ),
    (
        (
            "How big are you?",
            "How many parameters do you have?",
            "Are you a large model?",
            "How large are you?",
        ),
        "The user asks about my size.",
        "I am very small: about six million parameters.",
        "six million",
    ),
    (
        ("Who made you?", "Who trained you?", "How were you trained?", "Where do you come from?"),
        "The user asks where I come from.",
        "I come with the dsv4 project. I was trained on generated tasks on two CPU cores.",
        "dsv4",
    ),
    (
        ("Are you human?", "Are you a robot?", "Are you a person?", "Are you real?", "Are you an AI?"),
        "The user asks what I am.",
        "I am a small language model, not a person.",
        "language model",
    ),
)
_BEYOND = (
    "Write a poem about {}.",
    "Tell me a story about a {}.",
    "Why is the sky {}?",
    "Translate {} into French.",
    "What is the capital of {}?",
    "Write a program that prints {}.",
    "Explain how a {} works.",
    "Who invented the {}?",
    "What do you think about {}?",
    "Give me a recipe with {}.",
    "What is the meaning of {}?",
    "Tell me a joke about a {}.",
    "How do I fix my {}?",
    "What is the weather in {}?",
)


def _small_talk(rng: random.Random) -> Example:
    questions, thought, answer, key = rng.choice(SMALL_TALK)
    return Example("small_talk", rng.choice(questions), thought, answer, key)


def _beyond(rng: random.Random) -> Example:
    subject = rng.choice(
        [*THINGS, *ANIMALS, *FOODS, *PLACES, *COLOURS, "life", "music", "love", "time", "France", "Python"]
    )
    answer = f"I am too small to know that. {_CAN}"
    return Example("beyond", rng.choice(_BEYOND).format(subject), "This is beyond what I learned.", answer, "too small")


TASKS: dict[str, tuple[float, Callable[[random.Random], Example]]] = {
    "add": (0.26, _add),
    "subtract": (0.20, _subtract),
    "compare": (0.11, _compare),
    "facts": (0.14, _facts),
    "long_facts": (0.05, _long_facts),
    "sort": (0.08, _sort),
    "repeat": (0.06, _repeat),
    "small_talk": (0.06, _small_talk),
    "beyond": (0.04, _beyond),
}
OPEN_QUESTIONS = ("small_talk", "beyond")  # too few questions to hold any out; graded on what was trained


def draw(rng: random.Random, held_out: bool = False, task: str | None = None) -> Example:
    """A random example; held-out questions only, or none of them."""
    while True:
        name = task or rng.choices(list(TASKS), [share for share, _ in TASKS.values()])[0]
        example = TASKS[name][1](rng)
        if name in OPEN_QUESTIONS or example.held_out == held_out:
            return example


def conversation(rng: random.Random, thinking: bool) -> list[dict[str, str]]:
    """One to four turns as chat messages, every answer with its thought when `thinking`."""
    turns = rng.choices((1, 2, 3, 4), (0.7, 0.15, 0.1, 0.05))[0]
    messages: list[dict[str, str]] = []
    for _ in range(turns):
        example = draw(rng)
        messages.append({"role": "user", "content": example.question})
        answer = {"role": "assistant", "content": example.answer}
        if thinking:
            answer["reasoning_content"] = example.thought
        messages.append(answer)
    return messages
