"""Tools that are offered in generated conversations: their schemas, what a user asks for, what they return.

Names of tools and arguments vary, so that only the schema in the prompt tells them.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recipes.nano.items.words import ANIMALS, COLOURS, DAYS, FOODS, NAMES, PLACES, ROOMS, SPORTS, THINGS, words

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
    """asks: what a user says, with {0}, {1} ... for the arguments. tells: what it returns, in the same form, with {r}
    for a number that only the tool knows. says: the assistant's answer, {out} is what the tool returned."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    asks: tuple[str, ...]
    tells: str
    says: str
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
_FILES = ("notes", "list", "plan", "data", "report", "letter", "readme", "todo")


def one_of(values: list[str] | tuple[str, ...]) -> Draw:
    return lambda rng: rng.choice(values)


def whole(low: int, high: int) -> Draw:
    return lambda rng: rng.randrange(low, high)


def _tenth(rng: random.Random) -> float:
    return rng.randrange(1, 1000) / 10


def _truth(rng: random.Random) -> bool:
    return rng.random() < 0.5


def file_name(rng: random.Random) -> str:
    return f"{rng.choice(_FILES)}{rng.choice(('', '', str(rng.randrange(1, 10))))}.{rng.choice(('txt', 'md', 'csv'))}"


def product(expression: str) -> str:
    """The value of `a op b`."""
    left, sign, right = expression.split(" ")
    a, b = int(left), int(right)
    return str({"+": a + b, "-": a - b, "*": a * b}[sign])


def sum_of(rng: random.Random) -> str:
    return f"{rng.randrange(10, 100_000)} {rng.choice('+-**')} {rng.randrange(10, 10_000)}"


Maker = Callable[[random.Random], Tool]


def calculator(rng: random.Random) -> Tool:
    name = rng.choice(("calculator", "calc", "calculate", "compute", "evaluate"))
    argument = Argument(rng.choice(("expression", "expr", "input", "formula")), "string", sum_of)
    asks = ("What is {0}?", "Calculate {0}.", "How much is {0}?", "{0} = ?", "Please compute {0}", "work out {0}")
    return Tool(name, "Calculate an expression.", (argument,), asks, "", "{0} = {out}", run=product)


def lookup(rng: random.Random) -> Tool:
    name = rng.choice(("lookup", "look_up", "get_value", "find", "fetch", "query"))
    argument = Argument(rng.choice(("key", "name", "id", "term")), "string", one_of([*THINGS, *ANIMALS]))
    asks = ("Look up {0}.", "What is the value of {0}?", "Find the value of {0}.", "Which value is stored for {0}?")
    return Tool(name, "Look up the value of a key.", (argument,), asks, "{r}", "The value of {0} is {out}.")


def read_file(rng: random.Random) -> Tool:
    name = rng.choice(("read_file", "open_file", "cat", "file_read", "load_file"))
    argument = Argument(rng.choice(("path", "file", "filename", "file_name")), "string", file_name)
    asks = ("What is in {0}?", "Read {0}.", "Read the file {0}", "What does {0} say?", "Show me the file {0}.")
    words = f"{rng.choice(NAMES)} likes {rng.choice(FOODS)}", f"buy {rng.choice(FOODS)} and a {rng.choice(THINGS)}"
    tells = rng.choice((*words, "the number is {r}", "meet at {r}"))
    return Tool(name, "Read a file.", (argument,), asks, tells, "The file {0} says: {out}")


def weather(rng: random.Random) -> Tool:
    name = rng.choice(("weather", "get_weather", "weather_now", "forecast", "current_weather"))
    place = Argument(rng.choice(("city", "location", "place", "town")), "string", one_of(PLACES))
    asks = ("What is the weather in {0}?", "How is the weather in {0}?", "Weather in {0}?", "Is it cold in {0}?")
    return Tool(name, "Get the weather in a city.", (place,), asks, "{d} degrees, {s}", "In {0}: {out}.")


def _units(rng: random.Random) -> Argument:
    values = tuple(rng.sample(("meter", "mile", "inch", "foot", "yard", "gram", "ounce", "pound"), 3))
    return Argument(rng.choice(("unit", "to", "target")), "string", one_of(values), values)


def _known(rng: random.Random) -> list[Tool]:
    """Everyday tools; a tuple each: names, description, arguments, wordings, result, answer."""
    on = Argument(rng.choice(("on", "state", "enabled")), "boolean", _truth)
    count = Argument(rng.choice(("count", "amount", "quantity", "number")), "integer", whole(1, 100))
    minutes = Argument(rng.choice(("minutes", "duration", "time")), "integer", whole(1, 120))
    days = tuple(rng.sample(DAYS, 4))
    day = Argument(rng.choice(("day", "date", "when")), "string", one_of(days), days)
    person = Argument(rng.choice(("to", "person", "name", "recipient")), "string", one_of(NAMES))
    room = Argument(rng.choice(("room", "where", "area")), "string", one_of(ROOMS))
    city = Argument(rng.choice(("city", "place", "location")), "string", one_of(PLACES))
    item = Argument(rng.choice(("item", "product", "article")), "string", one_of(THINGS))
    value = Argument(rng.choice(("value", "x", "size")), "number", _tenth)
    text = Argument(rng.choice(("text", "message", "body")), "string", one_of([f"see you on {d}" for d in DAYS]))
    rows: list[tuple[str, str, tuple[Argument, ...], tuple[str, ...], str, str]] = [
        ("set_timer start_timer timer", "Set a timer in minutes.", (minutes,),
         ("Set a timer for {0} minutes.", "timer for {0} minutes", "Start a timer of {0} minutes."),
         "timer {r} started", "Done: {out}."),
        ("send_message send_text message", "Send a message.", (person, text),
         ("Tell {0}: {1}", "Send {0} the message: {1}", "Write to {0}: {1}"), "sent to {0}", "Done: {out}."),
        ("light set_light switch_light", "Switch the light of a room.", (room, on),
         ("Set the light in the {0} to {1}.", "Light in the {0}: {1}"), "light in the {0} is {1}", "Done: {out}."),
        ("order_item buy order", "Order items.", (item, count),
         ("Order {1} of the item {0}.", "Buy {0}, {1} pieces.", "I want to order {0}, {1} pieces."),
         "order number {r}", "Ordered: {out}."),
        ("convert unit_convert change_unit", "Convert a length or weight.", (value, _units(rng)),
         ("Convert {0} to {1}.", "How much is {0} in {1}?"), "{r} {1}", "{0} is {out}."),
        ("get_time clock time_in", "Get the time in a city.", (city,),
         ("What time is it in {0}?", "Time in {0}?", "Tell me the time in {0}."), "{r} minutes past noon",
         "In {0} it is {out}."),
        ("book_table reserve table", "Book a table for people on a day.", (count, day),
         ("Book a table for {0} people on {1}.", "I need a table for {0} on {1}."), "table {r}", "Booked: {out}."),
        ("population count_people inhabitants", "Get the population of a city.", (city,),
         ("How many people live in {0}?", "What is the population of {0}?"), "{r}", "{out} people live in {0}."),
        ("phone_number get_phone find_phone", "Find the phone number of a person.", (person,),
         ("What is the phone number of {0}?", "Phone number of {0}?"), "{r}", "The phone number of {0} is {out}."),
        ("price get_price price_of", "Get the price of an item.", (item,),
         ("What does the {0} cost?", "How much is a {0}?", "Price of the {0}?"), "{r} dollars",
         "The {0} costs {out}."),
        ("add_event calendar new_event", "Add an event to the calendar.",
         (Argument("title", "string", one_of(SPORTS)), day), ("Add {0} on {1} to my calendar.", "Plan {0} for {1}."),
         "event {r} added", "Done: {out}."),
        ("roll_dice dice random_number", "Roll dice with so many sides.",
         (Argument("sides", "integer", whole(2, 100)),), ("Roll a dice with {0} sides.", "roll a {0} sided dice"),
         "{r}", "The dice shows {out}."),
        ("list_files files ls", "List all files.", (), ("Which files are there?", "List the files.", "Show all files."),
         "notes.txt, plan{r}.md", "The files are: {out}."),
        ("battery get_battery status", "Get the battery level.", (),
         ("How full is the battery?", "What is the battery level?"), "{r}", "The battery level is {out}."),
    ]  # fmt: skip
    return [Tool(rng.choice(row[0].split()), *row[1:]) for row in rows]


def everyday(rng: random.Random) -> Tool:
    return rng.choice(_known(rng))


_SYLLABLES = words(
    "ba be bi bo da de do fa fi ga go ka ke ki ko la le lo lu ma me mi mo na ne no pa pi po ra re ri ro sa so su ta te "
    "ti to va vo za zo"
)
_VERBS = words(
    "get set find make send open start stop check move count paint clean sell rent call test draw build watch"
)


def made_up(rng: random.Random) -> str:
    """A word that means nothing, of two or three syllables."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))


def _unseen_argument(rng: random.Random, name: str) -> Argument:
    match rng.choice(("string", "string", "integer", "number", "boolean", "enum")):
        case "integer":
            return Argument(name, "integer", whole(0, 10_000))
        case "number":
            return Argument(name, "number", _tenth)
        case "boolean":
            return Argument(name, "boolean", _truth)
        case "enum":
            values = tuple(rng.sample([*COLOURS, *ANIMALS, *FOODS], rng.randint(2, 4)))
            return Argument(name, "string", one_of(values), values)
    return Argument(name, "string", one_of([*NAMES, *PLACES, *THINGS, *COLOURS]))


def unseen(rng: random.Random) -> Tool:
    """A tool with a name, arguments and a use that are drawn: only copying from the schema calls it rightly."""
    verb, thing = rng.choice(_VERBS), rng.choice((made_up(rng), rng.choice(THINGS), rng.choice(ANIMALS)))
    name = rng.choice((f"{verb}_{thing}", f"{verb}_{thing}", f"{thing}_{verb}", made_up(rng), f"{verb}{thing.title()}"))
    pool = [*COLOURS, *ROOMS, "size", "level", "mode", "speed", "owner", "label", "kind", "from_city", "max_count", "x",
            made_up(rng), made_up(rng)]  # fmt: skip
    arguments = tuple(_unseen_argument(rng, key) for key in rng.sample(pool, rng.randint(0, 3)))
    described = " ".join(f"{argument.name} {{{i}}}," for i, argument in enumerate(arguments)).rstrip(",")
    equal = ", ".join(f"{argument.name}={{{i}}}" for i, argument in enumerate(arguments))
    what = f"{verb.title()} a {thing}"
    if arguments:
        asks = (
            f"{what} with {described}.",
            f"{what}: {equal}",
            f"Use {name} with {described}.",
            f"Call {name}: {equal}",
        )
    else:
        asks = (f"{what}.", f"Use {name}.", f"Please call {name}.", f"please {verb} a {thing}")
    tells = rng.choice(("{r}", "ok {r}", f"{thing} {{r}}", f"done, {rng.choice(COLOURS)} {{r}}"))
    optional = rng.choice((0, 0, len(arguments))) if len(arguments) else 0
    return Tool(name, f"{what}.", arguments, asks, tells, "The result is: {out}", optional)
