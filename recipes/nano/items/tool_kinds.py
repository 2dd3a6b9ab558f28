"""Tools that are offered in generated conversations: their schemas, what a user asks for, what they return.

Names of tools and arguments vary, so that only the schema in the prompt tells them. Calculator, store, file reader and
weather are here; `everyday_tools` and `unseen_tools` have the others.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recipes.nano.items.patterns import text_of
from recipes.nano.items.typed import typed
from recipes.nano.items.words import ANIMALS, FOODS, NAMES, PLACES, THINGS, words

Draw = Callable[[random.Random], Any]


@dataclass(frozen=True, slots=True)
class Argument:
    name: str
    type: str  # of JSON schema
    draw: Draw
    enum: tuple[str, ...] = ()

    def schema(self, described: bool) -> dict[str, Any]:
        """As JSON schema, with a few words about it or without."""
        text = {"description": f"The {self.name.replace('_', ' ')}."} if described else {}
        return {"type": self.type} | text | ({"enum": list(self.enum)} if self.enum else {})


@dataclass(frozen=True, slots=True)
class Tool:
    """kind: no two of one are offered together. asks: patterns of what a user says, with {0}, {1} ... for the
    arguments. phrased: whether people type it freely. tells: what it returns, in the same form, with {r} for a
    number that only the tool knows. says: the assistant's answer, {out} is what the tool returned."""

    kind: str
    name: str
    description: str
    arguments: tuple[Argument, ...]
    asks: tuple[str, ...]
    tells: str
    says: str
    phrased: bool = True
    optional: int = 0  # so many of the last arguments may be left out
    run: Callable[..., str] | None = None

    def definition(self, rng: random.Random) -> dict[str, Any]:
        """As an OpenAI tool. Some describe their arguments, forbid others, or have an empty list of required ones."""
        described = rng.random() < 0.15
        required = [argument.name for argument in self.arguments[: len(self.arguments) - self.optional]]
        parameters: dict[str, Any] = {
            "type": "object",
            "properties": {a.name: a.schema(described) for a in self.arguments},
        }
        if required or rng.random() < 0.3:
            parameters["required"] = required
        if rng.random() < 0.1:
            parameters["additionalProperties"] = False
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def ask(self, rng: random.Random, values: list[Any]) -> str:
        """How a user asks for a call with these arguments, which stand in it as they are."""
        text = text_of(rng, rng.choice(self.asks))
        if not self.phrased:
            return text.format(*map(spoken, values))
        marks = [chr(0xE000 + i) for i in range(len(values))]
        text = typed(rng, text.format(*marks), bare=rng.random() < 0.7, closers=False)
        for mark, value in zip(marks, values, strict=True):
            text = text.replace(mark, spoken(value))
        return text

    def tell(self, rng: random.Random, values: list[Any]) -> str:
        """What the tool returns for these arguments."""
        if self.run is not None:
            return self.run(*values)
        return self.tells.format(
            *map(spoken, values), r=rng.randrange(10, 10_000), s=rng.choice(_SKIES), d=rng.randrange(-9, 35)
        )


def spoken(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


_SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy")
_USUAL = 0.7  # of the names of files; others are words, or mean nothing
_FILES = ("notes", "list", "plan", "data", "report", "letter", "readme", "todo")


def one_of(values: list[str] | tuple[str, ...]) -> Draw:
    return lambda rng: rng.choice(values)


def whole(low: int, high: int) -> Draw:
    return lambda rng: rng.randrange(low, high)


def tenth(rng: random.Random) -> float:
    return rng.randrange(1, 1000) / 10


def truth(rng: random.Random) -> bool:
    return rng.random() < 0.5


def file_name(rng: random.Random) -> str:
    stem = rng.choice(_FILES) if rng.random() < _USUAL else "_".join(_stem(rng) for _ in range(rng.randint(1, 2)))
    return f"{stem}{rng.choice(('', '', str(rng.randrange(1, 10))))}.{rng.choice(('txt', 'md', 'csv'))}"


def _stem(rng: random.Random) -> str:
    return rng.choice((rng.choice(THINGS), rng.choice(FOODS), rng.choice(NAMES).lower(), made_up(rng)))


def product(expression: str) -> str:
    """The value of `a op b`."""
    left, sign, right = expression.split(" ")
    a, b = int(left), int(right)
    return str({"+": a + b, "-": a - b, "*": a * b}[sign])


def sum_of(rng: random.Random) -> str:
    return f"{rng.randrange(10, 100_000)} {rng.choice('+-**')} {rng.randrange(10, 10_000)}"


Maker = Callable[[random.Random], Tool]


def drawn(rng: random.Random, pattern: str) -> str:
    """A text of the pattern, which may have alternatives without brackets."""
    return text_of(rng, f"[{pattern}]")


def calculator(rng: random.Random) -> Tool:
    name = drawn(
        rng, "calculator|calc|[calculate|compute|evaluate|eval|solve|do][|_sum|_expression|_math]|math[|_tool|s]"
    )
    argument = Argument(
        drawn(rng, "expression|expr|input|formula|sum|[math_|]expression|query|text|e"), "string", sum_of
    )
    asks = (
        "[What is|How much is|What's|What do you get for|Tell me|What is the result of|Do you know] {0}?", "{0} = ?",
        "{0}",
        "[|Please |Can you |Could you |I want you to ][calculate|compute|work out|evaluate|solve] {0}",
        "[I need|Give me|Tell me|Find|I want to know] [the result of|the value of|] {0}",
        "{0}, [please|what is it|how much]",
        "Use the [calculator|tool] for {0}", "[How much|What] [does {0} make|would {0} be|comes out of {0}]?",
    )  # fmt: skip
    about = drawn(rng, "Calculate an expression.|Compute the value of an expression.|Do a calculation.|A calculator.")
    return Tool("calculator", name, about, (argument,), asks, "", "{0} = {out}", run=product)


def lookup(rng: random.Random) -> Tool:
    name = drawn(
        rng, "lookup|look_up|find|fetch|query|[get|read|load|fetch|find|search]_[value|entry|record|item|key|data]|db"
    )
    argument = Argument(drawn(rng, "key|name|id|term|entry|record|k|[item|entry|record]_[name|id|key]"), "string",
                        one_of([*THINGS, *ANIMALS]))  # fmt: skip
    asks = (
        "[|Please |Can you |Could you ][look up|find|fetch|get|query] [|the value of |the entry ]{0}",
        "[What is|Tell me|I need|Give me|Show me|I want to know] the [value|entry|number] [of|for] {0}", "Look {0} up",
        "[Which|What] [value|number|entry] is [stored|saved|kept|there] [for|under] {0}?",
        "[Value|Entry] [of|for] {0}?",
        "What does the [store|database|table|list] [have|say] [for|about|under] {0}?", "Is there a value for {0}?",
    )  # fmt: skip
    about = drawn(
        rng, "[Look up|Get|Find] the value of a key.|Get the value that is stored for a key.|Search the store."
    )
    return Tool("lookup", name, about, (argument,), asks, "{r}", "The value of {0} is {out}.")


def read_file(rng: random.Random) -> Tool:
    name = drawn(
        rng, "[read|open|load|show|get|view|cat]_[file|text|document|content]|cat|file_[read|open|content]|readFile"
    )
    argument = Argument(drawn(rng, "path|file|filename|file_name|file_path|name|target|document"), "string", file_name)
    asks = (
        "[What is|What's|What stands|What do you find] in [|the file ]{0}?",
        "[What does|Tell me what] {0} [say|contain]",
        "[|Please |Can you |Could you |I want you to ][read|open|show|print|load|check] [|me ][|the file ]{0}",
        "[I need|Show me|Give me|Tell me|I want to see] [the content of|the text of|what is in] {0}",
        "{0}, what is in it?",
    )  # fmt: skip
    texts = f"{rng.choice(NAMES)} likes {rng.choice(FOODS)}", f"buy {rng.choice(FOODS)} and a {rng.choice(THINGS)}"
    tells = rng.choice(
        (*texts, "the number is {r}", "meet at {r}", f"{rng.choice(NAMES)} lives in {rng.choice(PLACES)}")
    )
    about = drawn(rng, "Read a file.|Read the text of a file.|Open a file and return its text.|Show what is in a file.")
    return Tool("file", name, about, (argument,), asks, tells, "The file {0} says: {out}")


def weather(rng: random.Random) -> Tool:
    name = drawn(
        rng, "[get_|current_|check_|show_|find_|][weather|forecast]|weather_[now|in|report|info|today]|getWeather"
    )
    place = Argument(drawn(rng, "city|location|place|town|where|city_name|q|area"), "string", one_of(PLACES))
    asks = (
        "[What is|What's|How is|Tell me|Check|I need|Give me|Show me|Do you know] the [weather|forecast] [in|for] {0}",
        "[Is it|Will it be] [cold|warm|sunny|rainy|windy|hot|nice] in {0}?", "[Weather|Weather in|Forecast for] {0}",
        "[How|What] is it like in {0} [|today|now|outside]?", "[Do I need|Should I take] [an umbrella|a coat] in {0}?",
        "[How cold|How warm] is it in {0}?", "I [am|will be] in {0}. [How is|What is] the weather?",
        "Will it rain in {0}?",
    )  # fmt: skip
    about = drawn(
        rng, "[Get|Look up|Return] the weather [in|of] a city.|Current weather of a place.|The weather somewhere."
    )
    return Tool("weather", name, about, (place,), asks, "{d} degrees, {s}", "In {0}: {out}.")


_SYLLABLES = words(
    "ba be bi bo da de do fa fi ga go ka ke ki ko la le lo lu ma me mi mo na ne no pa pi po ra re ri ro sa so su ta te "
    "ti to va vo za zo"
)


def made_up(rng: random.Random) -> str:
    """A word that means nothing, of two or three syllables."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))
