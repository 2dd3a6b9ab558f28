"""Questions about tools, made here, of the kinds of BFCL: simple, one of several, parallel, irrelevant."""

import random
from dataclasses import dataclass
from typing import Any

Tool = dict[str, Any]
Wanted = tuple[str, dict[str, Any]]  # name and arguments of a call

CITIES = ("Paris", "Oslo", "Lima", "Rome", "Cairo", "Tokyo")
ITEMS = ("apples", "pencils", "lamps", "books", "chairs", "cups")


@dataclass(frozen=True, slots=True)
class Question:
    """kind: for the report. wanted: the calls of a right answer, none if no tool helps. called: a right answer has
    calls, though `wanted` does not tell them. messages: in place of the text. place: file and line, of a question of
    the user."""

    kind: str
    text: str
    tools: tuple[Tool, ...]
    wanted: tuple[Wanted, ...]
    called: bool = False
    messages: tuple[dict[str, Any], ...] = ()
    place: str = ""

    @property
    def needs_call(self) -> bool:
        """Whether a right answer calls a tool."""
        return self.called or bool(self.wanted)


def _tool(name: str, about: str, properties: dict[str, Any], required: tuple[str, ...]) -> Tool:
    schema = {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


TEXT, WHOLE, NUMBER, TRUTH = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
WEATHER = _tool(
    "get_weather", "The weather in a city.",
    {"city": TEXT, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}, ("city",),
)  # fmt: skip
ORDER = _tool(
    "place_order", "Order goods.",
    {"item": TEXT, "quantity": WHOLE, "price": NUMBER, "gift": TRUTH}, ("item", "quantity"),
)  # fmt: skip
BOOKING = _tool(
    "book_room", "Book a room for guests.",
    {
        "guest": {
            "type": "object", "properties": {"name": TEXT, "age": WHOLE}, "required": ["name", "age"],
            "additionalProperties": False,
        },
        "nights": {"type": "integer", "minimum": 1, "maximum": 30},
        "extras": {"type": "array", "items": {"type": "string", "enum": ["breakfast", "parking", "sauna"]}},
    },
    ("guest", "nights"),
)  # fmt: skip
SUMS = _tool("add_numbers", "The sum of numbers.", {"numbers": {"type": "array", "items": NUMBER}}, ("numbers",))
CLOCK = _tool("get_time", "The time now.", {}, ())


def questions() -> list[Question]:
    """Twenty-two questions, the same in every run."""
    chance = random.Random(41)
    several = (WEATHER, ORDER, BOOKING, SUMS, CLOCK)
    found: list[Question] = []
    for city, unit in zip(CITIES[:3], ("celsius", "fahrenheit", "celsius"), strict=True):
        text = f"What is the weather in {city}, in {unit}?"
        found.append(Question("simple", text, (WEATHER,), (("get_weather", {"city": city, "unit": unit}),)))
    for item in ITEMS[:4]:
        count, price = chance.randrange(2, 40), chance.randrange(1, 20) + 0.5
        text = f"Order {count} {item} at a price of {price}, as a gift."
        wanted = {"item": item, "quantity": count, "price": price, "gift": True}
        found.append(Question("types", text, (ORDER,), (("place_order", wanted),)))
    for name, extra in (("Ann", "breakfast"), ("Bob", "parking"), ("Eve", "sauna")):
        age, nights = chance.randrange(20, 70), chance.randrange(1, 9)
        text = f"Book a room for {name}, aged {age}, for {nights} nights with {extra}."
        wanted = {"guest": {"name": name, "age": age}, "nights": nights, "extras": [extra]}
        found.append(Question("nested", text, (BOOKING,), (("book_room", wanted),)))
    for _ in range(3):
        numbers = [chance.randrange(1, 99) for _ in range(3)]
        text = f"Use a tool to add {', '.join(map(str, numbers))}."
        found.append(Question("several tools", text, several, (("add_numbers", {"numbers": numbers}),)))
    found.append(Question("no arguments", "What time is it now?", several, (("get_time", {}),)))
    for first, second in (CITIES[3:5], CITIES[4:6]):
        text = f"What is the weather in {first} and in {second}?"
        calls = tuple(("get_weather", {"city": city}) for city in (first, second))
        found.append(Question("parallel", text, (WEATHER,), calls))
    for text in ("Write one sentence about the sea.", "What is the capital of France?", "Hello, how are you?",
                 "Which is larger, a mouse or an elephant?", "Name three colours.", "Say goodbye."):  # fmt: skip
        found.append(Question("irrelevant", text, (BOOKING, ORDER), ()))
    return found
