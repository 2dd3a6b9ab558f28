"""Quick instructions (report 5.1, table 5): a title for a conversation, search or answer, and a search query."""

import random

from recipes.nano.items.facts import make_one_kind
from recipes.nano.items.item import Item
from recipes.nano.items.talk import intents, small_talk
from recipes.nano.items.words import ANIMALS, FOODS, NAMES, PLACES, SPORTS, THINGS

# what only a search can answer, with the query for it
_SEARCHES = (
    ("What is the weather in {p} today?", "weather {p} today"),
    ("Will it rain in {p} tomorrow?", "rain {p} tomorrow"),
    ("Who won the {s} match yesterday?", "{s} match winner yesterday"),
    ("What is the news from {p}?", "news {p}"),
    ("What does a {t} cost?", "price of a {t}"),
    ("Where can I buy a {t} in {p}?", "buy a {t} in {p}"),
    ("How do I cook {f}?", "how to cook {f}"),
    ("How many people live in {p}?", "population of {p}"),
    ("How old can a {a} get?", "{a} life span"),
    ("What does a {a} eat?", "{a} food"),
    ("When is the next train to {p}?", "next train to {p}"),
    ("Which hotel in {p} is good?", "good hotel in {p}"),
    ("Who invented the {t}?", "inventor of the {t}"),
    ("How far is {p} from {q}?", "distance {p} {q}"),
    ("What time is it in {p}?", "time in {p}"),
    ("Find me a video about {s}.", "{s} video"),
)
_OPENERS = ("", "", "", "Hello! ", "Please tell me: ", "I want to know: ", "Hi, ")
_TITLES = {
    "greeting": "Greeting",
    "joke": "A joke",
    "name": "Name of the model",
    "who_are_you": "About nano",
    "what_can_you_do": "What nano can do",
    "how_are_you": "How are you",
    "who_made_you": "Who made nano",
    "thanks": "Thanks",
    "poem": "Request for a poem",
    "code": "Request for code",
    "translate": "Request for a translation",
    "recipe": "Request for a recipe",
    "how_big": "Size of nano",
    "memory": "Memory of nano",
    "user_sad": "Feeling sad",
    "user_bored": "Feeling bored",
}


def _search(rng: random.Random) -> tuple[str, str]:
    p, q = rng.sample(PLACES, 2)
    words = {"p": p, "q": q, "s": rng.choice(SPORTS), "t": rng.choice(THINGS), "f": rng.choice(FOODS)}
    question, query = rng.choice(_SEARCHES)
    words["a"] = rng.choice(ANIMALS)
    return rng.choice(_OPENERS) + question.format(**words), query.format(**words)


def make_query(rng: random.Random) -> Item:
    """The user's question, then a query for a search engine."""
    question, query = _search(rng)
    messages = ({"role": "user", "content": question, "task": "query"}, {"role": "assistant", "content": query})
    return Item("talk", "query", messages, query, "text")


def make_action(rng: random.Random) -> Item:
    """Whether a question needs a search, or can be answered at once."""
    if rng.random() < 0.5:
        question, action = _search(rng)[0], "search"
    else:
        facts = make_one_kind(rng, most=4, turns=1).messages[0]["content"]
        sums = f"What is {rng.randrange(1000)} {rng.choice('+-*')} {rng.randrange(1000)}?"
        known = [name for name in intents() if name in _TITLES]
        question, action = rng.choice((facts, sums, small_talk(rng, rng.choice(known))[0])), "answer"
    messages = ({"role": "user", "content": question, "task": "action"}, {"role": "assistant", "content": action})
    return Item("talk", "action", messages, {"right": action, "options": ["search", "answer"]}, "choice")


def make_title(rng: random.Random) -> Item:
    """A short title after a conversation of one turn."""
    kind = rng.randrange(4)
    if kind == 0:
        intent = rng.choice(list(_TITLES))
        question, answer, thought = small_talk(rng, intent)
        title = _TITLES[intent]
    elif kind == 1:
        a, b = rng.randrange(1000), rng.randrange(1000)
        question, answer, thought = f"What is {a} + {b}?", f"{a} + {b} = {a + b}", f"{a} + {b} = {a + b}"
        title = f"Sum of {a} and {b}"
    elif kind == 2:
        numbers = [rng.randrange(100) for _ in range(rng.randint(2, 6))]
        question = f"Sort {', '.join(map(str, numbers))}."
        answer = thought = ", ".join(map(str, sorted(numbers)))
        title = f"Sorting {len(numbers)} numbers"
    else:
        name, place = rng.choice(NAMES), rng.choice(PLACES)
        question, answer = f"{name} lives in {place}. Where does {name} live?", f"{name} lives in {place}."
        thought, title = f"The text says: {answer}", f"Home of {name}"
    messages = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "reasoning_content": thought, "task": "title"},
        {"role": "assistant", "content": title},
    )
    return Item("talk", "title", messages, title, "text")
