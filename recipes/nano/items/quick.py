"""Quick instructions (report 5.1, table 5): a title for a conversation, search or answer, and a search query."""

import random
import re

from recipes.nano.items.arithmetic import make_sum
from recipes.nano.items.facts import found, make_one_kind
from recipes.nano.items.item import Item
from recipes.nano.items.ordering import make_sort
from recipes.nano.items.patterns import text_of
from recipes.nano.items.talk import HINTS, small_talk, talk_about
from recipes.nano.items.typed import OPENERS
from recipes.nano.items.words import ANIMALS, FOODS, NAMES, PLACES, SPORTS, THINGS

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
    "insult": "A complaint",
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
}


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
    if rng.random() < 0.5:
        question, action = _search(rng)[0], "search"
    else:
        facts = make_one_kind(rng, most=4, turns=1).messages[0]["content"]
        sums = f"What is {rng.randrange(1000)} {rng.choice('+-*')} {rng.randrange(1000)}?"
        question, action = rng.choice((facts, sums, small_talk(rng, rng.choice(list(_TITLES)))[0])), "answer"
    messages = ({"role": "user", "content": question, "task": "action"}, {"role": "assistant", "content": action})
    return Item("talk", "action", messages, {"right": action, "options": ["search", "answer"]}, "choice")


def make_title(rng: random.Random) -> Item:
    """A short title after a conversation of one turn, which is an item of its family: its answer is learned too."""
    kind = rng.randrange(5)
    if kind == 0:
        intent = rng.choice(list(_TITLES))
        asked, title = talk_about(rng, intent), _TITLES[intent]
    elif kind == 1:
        asked = make_sum(rng, most=2)
        title = "Sum of {} and {}".format(*_numbers(asked))
    elif kind == 2:
        asked = make_sort(rng)
        title = "Sorting numbers"
    elif kind == 3:
        name, place = rng.choice(NAMES), rng.choice(PLACES)
        answer = f"{name} lives in {place}."
        asked = _item(f"{answer} Where does {name} live?", answer, found(name, answer))
        title = f"Home of {name}"
    else:
        question, _, title = _search(rng)
        asked = _item(question, f"I did not learn that. {rng.choice(HINTS)}", "I did not learn that.")
    user, assistant = asked.messages[:2]
    messages = (user, assistant | {"task": "title"}, {"role": "assistant", "content": title})
    return Item("talk", "title", messages, title, "text")


def _item(question: str, answer: str, thought: str) -> Item:
    messages = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    )
    return Item("talk", "title", messages, answer, "text")


def _numbers(asked: Item) -> list[str]:
    return re.findall(r"\d+", asked.messages[0]["content"])
