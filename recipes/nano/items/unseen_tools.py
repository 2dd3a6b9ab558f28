"""Tools whose names, arguments and use are drawn: only copying from the schema calls them rightly."""

import random

from recipes.nano.items.tool_kinds import Argument, Tool, file_name, made_up, one_of, tenth, truth, whole
from recipes.nano.items.words import ANIMALS, COLOURS, FOODS, NAMES, PLACES, ROOMS, THINGS, words

_VERBS = words(
    "get set find make send open start stop check move count paint clean sell rent call test draw build watch add "
    "remove list show read write save load fetch update delete create search sort filter merge split copy paste "
    "print scan lock unlock enable disable pause resume cancel confirm book plan track trace rate rank tag mark "
    "label join leave invite block follow share publish upload download import export sync verify sign encrypt "
    "pack ship refund pay charge reset restart deploy install mix heat cool fill empty weigh measure repair wash "
    "fold cut glue ring feed train guess pick"
)
_NOUNS = words(
    "invoice ticket user order playlist recipe server task note contact account photo booking sensor report "
    "project team channel message comment review product cart payment parcel route driver vehicle engine pump "
    "valve tank battery screen printer router device camera drone robot session token cluster job queue cache "
    "table row column record index policy contract patient visit exam course lesson student grade garden plant "
    "seed field harvest menu dish oven room house floor window door ladder bridge tower train flight ship cabin "
    "seat guest hotel museum song album film scene puzzle game player level quest prize badge colour shape line "
    "point map city border river station event meeting"
)
_SUFFIXES = words("id name type code count date size status mode level key owner label limit number group title path")


def _noun(rng: random.Random) -> str:
    return rng.choice((rng.choice(_NOUNS), rng.choice(_NOUNS), rng.choice(THINGS), rng.choice(ANIMALS), made_up(rng)))


def _tool_name(rng: random.Random, verb: str, noun: str) -> str:
    other = _noun(rng)
    return rng.choice(
        (
            f"{verb}_{noun}",
            f"{verb}_{noun}",
            f"{noun}_{verb}",
            f"{verb}{noun.title()}",
            f"{verb}-{noun}",
            made_up(rng),
            f"{verb}_{other}_{noun}",
            f"{other}_{verb}_{noun}",
            f"{noun}{verb.title()}",
            f"{verb}_{noun}_{rng.choice('23xyz')}",
        )
    )


def _argument_name(rng: random.Random) -> str:
    noun, suffix = _noun(rng), rng.choice(_SUFFIXES)
    plain = (noun, suffix, rng.choice(COLOURS), rng.choice(ROOMS), made_up(rng), rng.choice("abnpqxyz"))
    return rng.choice(
        (
            *plain,
            f"{noun}_{suffix}",
            f"{noun}{suffix.title()}",
            f"{rng.choice(('max', 'min', 'new', 'from', 'to'))}_{noun}",
        )
    )


def _text(rng: random.Random) -> str:
    """A short value that nothing but the question tells."""
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    return rng.choice(
        (
            name,
            place,
            rng.choice(THINGS),
            rng.choice(COLOURS),
            rng.choice(_NOUNS),
            made_up(rng),
            file_name(rng),
            f"{rng.choice('ABCDEFGHKLMNPRSTXYZ')}{rng.randrange(1, 1000)}",
            f"{rng.choice(COLOURS)} {rng.choice(THINGS)}",
            f"20{rng.randrange(10, 40)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
            f"{name} from {place}",
            f"{rng.randrange(24):02}:{rng.randrange(60):02}",
            f"{name.lower()}@{made_up(rng)}.org",
            str(rng.randrange(1000)),
        )
    )


def _argument(rng: random.Random, name: str) -> Argument:
    match rng.choice(("string", "string", "string", "integer", "number", "boolean", "enum")):
        case "integer":
            return Argument(name, "integer", whole(-100 if rng.random() < 0.1 else 0, 10_000))
        case "number":
            return Argument(name, "number", tenth)
        case "boolean":
            return Argument(name, "boolean", truth)
        case "enum":
            pool = rng.choice(([*COLOURS, *ANIMALS, *FOODS], _NOUNS, _VERBS, [made_up(rng) for _ in range(6)]))
            values = tuple(rng.sample(list(dict.fromkeys(pool)), rng.randint(2, 4)))
            return Argument(name, "string", one_of(values), values)
    return Argument(name, "string", _text)


def _asks(rng: random.Random, verb: str, noun: str, name: str, arguments: tuple[Argument, ...]) -> tuple[str, ...]:
    """Patterns of what a user says; each names the tool or what it does, and all arguments."""
    use = "[use|Use|Please use|Can you use|Could you call|I want you to call|Now run]"
    what = f"{verb} [a|the|this] {noun}"
    do = f"[{verb}|{verb.title()}|Please {verb}|Can you {verb}|I need you to {verb}|Now {verb}] [a|the|this] {noun}"
    if not arguments:
        return (
            do,
            f"[Use|Call|Run|Try|Start] {name}",
            f"{use} {name}",
            f"{name}",
            f"[I want to|I would like to|Help me to|I have to|Let us] {what}",
        )
    named = [(i, argument.name) for i, argument in enumerate(arguments)]
    if rng.random() < 0.3:  # in another order than the schema has
        rng.shuffle(named)
    beside = ", ".join(f"{one} {{{i}}}" for i, one in named)
    equal = ", ".join(f"{one}={{{i}}}" for i, one in named)
    verbal = " and ".join(f"{one} is {{{i}}}" for i, one in named)
    colon = "; ".join(f"{one}: {{{i}}}" for i, one in named)
    asks = (
        f"{do} with {beside}", f"{do}: {equal}", f"[Use|Call|Run|Try] {name} [with|and take|for] {beside}",
        f"[Call|Run|Use] {name}: {equal}", f"{name}({equal})", f"[I want to|Help me to] {what}. {colon}",
        f"{do}, where {verbal}", f"{colon}. [{what}|Use {name}|Call {name}]", f"{use} {name}, {verbal}",
    )  # fmt: skip
    return (*asks, f"{do} for {{0}}", f"{name} {{0}}", f"{what} {{0}}") if len(named) == 1 else asks


def unseen(rng: random.Random) -> Tool:
    """A tool that no other conversation has; its verb and noun are in its description."""
    verb, noun = rng.choice(_VERBS), _noun(rng)
    name = _tool_name(rng, verb, noun)
    named = dict.fromkeys(_argument_name(rng) for _ in range(rng.randint(0, 3)))
    arguments = tuple(_argument(rng, key) for key in named)
    colour = rng.choice(COLOURS)
    tells = rng.choice(
        (
            "{r}",
            "ok {r}",
            f"{noun} {{r}}",
            f"done, {colour} {{r}}",
            f'{{{{"{noun}": {{r}}}}}}',
            f"{noun}: {colour}",
            "true",
            f'{{{{"status": "{colour}", "id": {{r}}}}}}',
            f"{{r}} {noun}s",
            f"{verb} ready, number {{r}}",
            f"no {noun} found",
        )
    )
    about = rng.choice((f"{verb.title()} a {noun}.", f"{verb.title()} the {noun} of a user.", f"To {verb} a {noun}."))
    optional = rng.choice((0, 0, len(arguments)))
    asks = _asks(rng, verb, noun, name, arguments)
    return Tool(name, name, about, arguments, asks, tells, "The result is: {out}", phrased=False, optional=optional)
