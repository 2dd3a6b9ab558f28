"""Quick instructions (report 5.1, table 5): a title for a conversation, search or answer, and a search query."""

import random
import re
from functools import partial

from recipes.nano.items.arithmetic import make_difference, make_product, make_sum
from recipes.nano.items.facts import found, make_one_kind
from recipes.nano.items.item import Item, Maker, draw
from recipes.nano.items.ordering import make_extreme, make_parity, make_sort
from recipes.nano.items.patterns import text_of
from recipes.nano.items.problems import make_problem
from recipes.nano.items.talk import HINTS, small_talk, talk_about
from recipes.nano.items.typed import OPENERS
from recipes.nano.items.words import ANIMALS, FOODS, JOBS, NAMES, PLACES, SPORTS, THINGS

# what only a search can answer: patterns of questions, the query for it, and the title of a conversation about it
_SEARCHES = (
    (
        "[What is|What's|How is|Tell me] the weather in {p} [today|now|like today]?",
        "weather {p} today",
        "Weather in {p}",
    ),
    ("Will it [rain|snow|be warm] in {p} tomorrow?", "weather {p} tomorrow", "Weather in {p}"),
    ("Who won the {s} [match|game|cup] [yesterday|last night]?", "{s} match winner yesterday", "A {s} match"),
    ("What [was the result|is the score] of the {s} [match|game]?", "{s} match result", "A {s} match"),
    ("[What is|Tell me|Give me|Is there any] [the news|news] from {p}?", "news {p}", "News from {p}"),
    ("[What does a {t} cost|How much is a {t}|What is the price of a {t}]?", "price of a {t}", "Price of a {t}"),
    ("Where can I [buy|get|find] a {t} in {p}?", "buy a {t} in {p}", "A {t} in {p}"),
    ("How [do I|can I|do you] [cook|make|prepare] {f}?", "how to cook {f}", "Cooking {f}"),
    ("[Is there|Do you know|Find me] a recipe with {f}?", "recipe with {f}", "Recipe with {f}"),
    ("[How many people live in {p}|How big is {p}|What is the population of {p}]?", "population of {p}", "Size of {p}"),
    ("[How old can a {a} get|How long does a {a} live]?", "{a} life span", "Life of a {a}"),
    ("What [does a {a} eat|do I give a {a} to eat]?", "{a} food", "Food of a {a}"),
    ("[When is|When does|At what time is] the next [train|bus] to {p} [|leave]?", "next train to {p}", "Travel to {p}"),
    ("How [do I get|can I travel] from {p} to {q}?", "route from {p} to {q}", "From {p} to {q}"),
    ("[Which hotel in {p} is good|Where can I sleep in {p}|Find a hotel in {p}]?", "good hotel in {p}", "Hotel in {p}"),
    ("[Which restaurant in {p} is good|Where can I eat in {p}]?", "good restaurant in {p}", "Eating in {p}"),
    ("[Who invented|Who made the first|Who came up with] the {t}?", "inventor of the {t}", "Inventor of the {t}"),
    ("When was the {t} invented?", "year of invention {t}", "Inventor of the {t}"),
    ("[How far is {p} from {q}|What is the distance between {p} and {q}]?", "distance {p} {q}", "From {p} to {q}"),
    ("[What time is it|How late is it] in {p}?", "time in {p}", "Time in {p}"),
    ("[Find me|Show me|Search|I want] a video about {s}.", "{s} video", "Videos about {s}"),
    ("[What are|Explain|Tell me] the rules of {s}?", "rules of {s}", "Rules of {s}"),
    ("Who is the [best|most famous] {s} player?", "best {s} player", "Players of {s}"),
    ("How do I [train|wash|feed|keep] a {a}?", "how to keep a {a}", "Keeping a {a}"),
    ("How [do I|can I] [repair|clean|fix] [a|my] {t}?", "how to repair a {t}", "Repair of a {t}"),
    ("[Which|What] {t} [is the best|should I buy]?", "best {t} to buy", "Choice of a {t}"),
    ("What [can I see|is there to see] in {p}?", "sights in {p}", "Sights of {p}"),
    ("[Who is the mayor of|Who governs] {p}?", "mayor of {p}", "Mayor of {p}"),
    ("[What does|How much is] a flight to {p} [cost|]?", "flight to {p} price", "Travel to {p}"),
    ("Is {f} [healthy|good for me]?", "is {f} healthy", "Health and {f}"),
    ("How many calories [has|have|are in] {f}?", "calories of {f}", "Health and {f}"),
    ("How do I learn {s}?", "learn {s}", "Learning {s}"),
)
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
    "user_angry": "Feeling angry",
    "user_tired": "Feeling tired",
    "user_afraid": "Feeling worried",
    "goodbye": "Goodbye",
    "riddle": "A riddle",
    "chatgpt": "About nano",
    "how_trained": "Training of nano",
    "languages": "Languages of nano",
    "age": "Age of nano",
    "where_live": "Home of nano",
    "internet": "Internet access",
    "privacy": "Privacy",
    "essay": "Request for a text",
    "summary": "Request for a summary",
    "image": "Request for a picture",
    "medical": "A medical question",
    "law": "A legal question",
    "money": "A question about money",
    "can_math": "Sums with nano",
    "can_tools": "Tools of nano",
    "meaning": "A deep question",
    "opinion": "Opinions of nano",
    "who_and_what": "About nano",
    "which_model": "About nano",
    "human": "About nano",
    "why_nano": "Name of the model",
    "dsv4": "About dsv4",
    "deepseek": "About DeepSeek",
    "smart": "Limits of nano",
    "cannot_do": "Limits of nano",
    "feelings": "Feelings of nano",
    "favourite": "Likes of nano",
    "license": "Licence of nano",
    "speed": "Speed of nano",
    "example": "Examples for nano",
    "good_morning": "Greeting",
    "good_evening": "Greeting",
    "good_night": "Goodbye",
    "test": "A test",
    "praise": "Praise",
    "insult": "A complaint",
    "wrong": "A mistake",
    "advice": "Request for advice",
    "history": "A question of history",
    "culture": "A question of culture",
    "word": "Meaning of a word",
    "hard_math": "A hard calculation",
    "news": "Request for news",
    "time": "Time and date",
    "act": "Request without a tool",
    "fun_fact": "A fun fact",
    "can_puzzle": "A game",
    "can_sort": "Sorting with nano",
    "can_count": "Counting with nano",
    "can_read": "Texts with nano",
    "user_fine": "Feeling good",
    "user_hungry": "Feeling hungry",
    "user_birthday": "A birthday",
    "user_crisis": "A person in need",
}

# intents that need a search, and those that need none
_SEARCHED = ("news", "weather_without_tool", "capital", "history", "science", "culture", "recipe", "nearby")
_ANSWERED = tuple(
    name for name in _TITLES if name not in (*_SEARCHED, "time", "word", "act", "advice", "medical", "law", "money")
)
_FACTS = (
    ("{n} lives in {v}.", "Where does {n} live?", "Home of {n}", PLACES),
    ("{n} works as a {v}.", "What is {n}'s job?", "Job of {n}", JOBS),
    ("{n} owns a {v}.", "Which animal does {n} own?", "Animal of {n}", ANIMALS),
    ("{n} likes {v}.", "What does {n} like?", "Food of {n}", FOODS),
    ("{n} plays {v}.", "Which sport does {n} play?", "Sport of {n}", SPORTS),
)
_NUMBERS: tuple[tuple[Maker, str], ...] = (
    (partial(make_sum, most=2), "Sum of {} and {}"),
    (make_sort, "Sorting numbers"),
    (make_product, "Product of {} and {}"),
    (partial(make_difference, most=2), "Difference of {} and {}"),
    (make_extreme, "Largest or smallest number"),
    (make_parity, "Even or odd"),
    (make_problem, "A word problem"),
)


def _search(rng: random.Random) -> tuple[str, str, str]:
    """A question, the query and the title."""
    p, q = rng.sample(PLACES, 2)
    words = {"p": p, "q": q, "s": rng.choice(SPORTS), "t": rng.choice(THINGS), "f": rng.choice(FOODS)}
    question, query, title = rng.choice(_SEARCHES)
    words["a"] = rng.choice(ANIMALS)
    asked = text_of(rng, question).format(**words)
    asked = asked[:-1] if asked[-1] in "?." and rng.random() < 0.3 else asked
    if rng.random() < 0.4:
        asked = rng.choice(OPENERS) + asked
    if rng.random() < 0.7:
        asked = asked[:1].upper() + asked[1:]
    return asked, query.format(**words), title.format(**words)


def make_query(rng: random.Random) -> Item:
    """The user's question, then a query for a search engine."""
    question, query, _ = _search(rng)
    messages = ({"role": "user", "content": question, "task": "query"}, {"role": "assistant", "content": query})
    return Item("talk", "query", messages, query, "text")


def make_action(rng: random.Random) -> Item:
    """Whether a question needs a search, or can be answered at once."""
    kind = rng.random()
    if kind < 0.5:
        question = _search(rng)[0] if kind < 0.35 else small_talk(rng, rng.choice(_SEARCHED))[0]
        action = "search"
    else:
        facts = make_one_kind(rng, most=4, turns=1).messages[0]["content"]
        sums = f"What is {rng.randrange(1000)} {rng.choice('+-*')} {rng.randrange(1000)}?"
        question, action = rng.choice((facts, sums, small_talk(rng, rng.choice(_ANSWERED))[0])), "answer"
    messages = ({"role": "user", "content": question, "task": "action"}, {"role": "assistant", "content": action})
    return Item("talk", "action", messages, {"right": action, "options": ["search", "answer"]}, "choice")


def make_title(rng: random.Random) -> Item:
    """A short title after a conversation of one turn, which is an item of its family: its answer is learned too."""
    kind = rng.random()
    if kind < 0.3:
        intent = rng.choice(list(_TITLES))
        asked, title = talk_about(rng, intent), _TITLES[intent]
    elif kind < 0.55:
        question, _, title = _search(rng)
        asked = _item(question, f"I did not learn that. {rng.choice(HINTS)}", "I did not learn that.")
    elif kind < 0.65:
        asked, title = _of_facts(rng)
    else:
        asked, title = _of_numbers(rng)
    user, assistant = asked.messages[:2]
    messages = (user, assistant | {"task": "title"}, {"role": "assistant", "content": title})
    return Item("talk", "title", messages, title, "text")


def _of_facts(rng: random.Random) -> tuple[Item, str]:
    """A question about one or two sentences, and the title."""
    statement, question, title, values = rng.choice(_FACTS)
    name, other = rng.sample(NAMES, 2)
    answer = statement.format(n=name, v=rng.choice(values))
    text = [answer, statement.format(n=other, v=rng.choice(values))][: rng.randint(1, 2)]
    rng.shuffle(text)
    asked = _item(f"{' '.join(text)} {question.format(n=name)}", answer, found(name, answer))
    return asked, title.format(n=name)


def _of_numbers(rng: random.Random) -> tuple[Item, str]:
    """A task with numbers, and the title."""
    make, title = rng.choice(_NUMBERS)
    asked = draw(make, rng)
    return asked, title.format(*_numbers(asked))


def _item(question: str, answer: str, thought: str) -> Item:
    messages = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    )
    return Item("talk", "title", messages, answer, "text")


def _numbers(asked: Item) -> list[str]:
    return re.findall(r"\d+", asked.messages[0]["content"])
