"""The grammar of a block of DSML calls that the model opens by itself, where no tool is strict.

It allows every call that the schemas accept, with the parameters in any order: names of the request's functions,
parameters that a function lists, each at most once and the required ones always, scalars and lists of scalars of their
types and values. Other keywords (bounds, patterns, properties of nested objects) would need an order or a form that
the model was not asked for, so they are left to the client. `call_grammar` has the grammar of strict calls.

A function whose parameters cannot be listed has only its name here, and any parameters.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsv4.encoding.call_grammar import WHITESPACE, block_rules, names_rule, top_of
from dsv4.encoding.dialect import Dialect
from dsv4.encoding.dsml import to_json
from dsv4.encoding.schema import GrammarError, json_type, types_of, values_of

# of all functions together, in their order; those behind the limit have only their names. A grammar of this size
# compiles in less than a second
MOST_FUNCTIONS, MOST_PARAMETERS, MOST_CHARACTERS = 500, 2_000, 500_000
# which parameters were written is a number of 64 bits
MOST_OF_ONE = 64
MOST_VALUES, MOST_OF_VALUES = 200, 10_000
_JSON = {"json_allow_general_unicode_escapes": True, **WHITESPACE}
_TERMINALS = {
    "integer": ("INTEGER", r"/-?(0|[1-9][0-9]*)/"),
    "number": ("NUMBER", r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/"),
    "boolean": ("BOOLEAN", r"/true|false/"),
    "null": ("NULL", r"/null/"),
}


def any_order_rules(
    functions: Sequence[Mapping[str, Any]], dialect: Dialect, dsml: int, begin: str, *, parallel: bool
) -> str:
    """Rules from `start` on; arguments as of `call_rules`. Raises nothing: what cannot be enforced is left out."""
    values = _Values()
    calls: dict[str, list[str]] = {}
    bare: list[str] = []
    parameters = characters = 0
    for index, function in enumerate(functions):
        name = str(function.get("name"))
        try:
            call = _Call(f"call_{index}", name, function.get("parameters"))
            rules = call.rules(dialect.invoke_tag, values)
        except GrammarError:
            bare.append(name)
            continue
        parameters, characters = parameters + call.count, characters + sum(map(len, rules))
        long = characters + values.characters > MOST_CHARACTERS
        if long or len(calls) == MOST_FUNCTIONS or parameters > MOST_PARAMETERS:
            bare += [str(function.get("name")) for function in functions[index:]]
            break
        calls[call.rule] = rules
    if bare:
        calls["call_any"] = _any_call(bare, dialect.invoke_tag, values)
    block = block_rules(list(calls), dialect, dsml, begin, parallel=parallel)
    return "\n".join([*block, *(rule for rules in calls.values() for rule in rules), *values.rules()])


def _any_call(names: Sequence[str], tag: str, values: "_Values") -> list[str]:
    """The call of a function that takes any parameters."""
    return [
        names_rule(names, tag),
        f'call_any: dsml NAMES ("\\n</" | ("<" open KEY {values.of({}, {})} "\\n")* "</") dsml "{tag}>"',
    ]


class _Call:
    """The call of one function that lists its parameters. count: of them.

    Raises GrammarError for a function that does not.
    """

    def __init__(self, rule: str, name: str, schema: Any) -> None:
        self.rule, self._name = rule, name
        if not isinstance(schema, Mapping):
            raise GrammarError("no schema")
        top, self._root = top_of(schema)
        self._others = top.get("additionalProperties", False)
        properties: Mapping[str, Any] = top.get("properties", {})
        if not properties and (self._others is not False or "properties" not in top):
            raise GrammarError("any parameters are allowed")
        required = [key for key in top.get("required") or [] if isinstance(key, str)]
        # the required ones come first, because their bits are tested together
        self._properties = {key: properties.get(key, {}) for key in dict.fromkeys([*required, *properties])}
        self._required, self.count = len(set(required)), len(self._properties)
        if self.count > MOST_OF_ONE:
            raise GrammarError(f"more than {MOST_OF_ONE} parameters")

    def rules(self, tag: str, values: "_Values") -> list[str]:
        head, end = _literal(f'{tag} name="{self._name}">\n'), f'dsml "{tag}>"'
        none = '"\\n</"'  # the release writes an empty line where its service does not
        if not self._properties:
            return [f'{self.rule}: dsml {head} ("</" | {none}) {end}']
        more = f"{self.rule}_more"
        first = f"{more}::0x0" if self._required else f"({more}::0x0 | {none})"
        alternatives = ['"</"' + (f" %if is_ones([0:{self._required}])" if self._required else "")]
        for bit, (key, schema) in enumerate(self._properties.items()):
            value = values.of(schema, self._root)
            alternatives.append(f'"<" open {_literal(key)} {value} "\\n" {more}::set_bit({bit}) %if bit_clear({bit})')
        rules = [f"{self.rule}: dsml {head} {first} {end}"]
        if self._others is not False:
            other, listed = f"{self.rule.upper()}_OTHER", " | ".join(map(_literal, self._properties))
            rules.append(f"{other}: KEY & ~({listed})")
            alternatives.append(f'"<" open {other} {values.of(self._others, self._root)} "\\n" {more}::_')
        return [*rules, f"{more}::_: " + " | ".join(alternatives)]


class _Values:
    """The rules of values, one for all parameters that allow the same. characters: of them all."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self.characters = 0

    def rules(self) -> list[str]:
        terminals = [f"{name}: {pattern}" for name, pattern in _TERMINALS.values()]
        return [*terminals, *(f"{name}: {body}" for body, name in self._names.items())]

    def of(self, schema: Any, root: Mapping[str, Any]) -> str:
        """The rule of a parameter's value, from the quote behind its name on. Raises GrammarError if no value is
        allowed."""
        kinds, listed = types_of(schema, root), _short(values_of(schema, root))
        if listed is not None:
            listed = [value for value in listed if kinds is None or _fits(value, kinds)]
            texts = [_literal(value) for value in listed if isinstance(value, str)]
            others = [text for value in listed if not isinstance(value, str) for text in _numerals(value)]
            return self._either([f'({" | ".join(texts)}) "</"'] if texts else [], others)
        if kinds is None:
            return self._either(["RAW"], [self._schema({})])
        others = [self._kind(kind, schema, root) for kind in sorted(kinds - {"string"})]
        return self._either(["RAW"] if "string" in kinds else [], others)

    def _kind(self, kind: str, schema: Any, root: Mapping[str, Any]) -> str:
        if kind in _TERMINALS:
            return _TERMINALS[kind][0]
        # behind `prefixItems`, `items` is of the rest
        whole = kind == "array" and isinstance(schema, Mapping) and "prefixItems" not in schema
        items = schema.get("items") if whole else None
        kinds, listed = types_of(items, root), _short(values_of(items, root))
        if listed is not None:
            return self._schema({"type": kind, "items": {"enum": listed}})
        return self._schema({"type": kind, **({"items": {"type": sorted(kinds)}} if kinds else {})})

    def _schema(self, schema: Mapping[str, Any]) -> str:
        return self._named(f"%json {json.dumps({**schema, 'x-guidance': _JSON})}")

    def _either(self, texts: Sequence[str], others: Sequence[str]) -> str:
        """A value that is one of these raw texts, which include the end of the closing tag, or one of these of JSON."""
        forms = [f'"\\" string=\\"true\\">" {text} close' for text in texts]
        if others:
            forms.append(f'"\\" string=\\"false\\">" ({" | ".join(others)}) "</" close')
        if not forms:
            raise GrammarError("no value is allowed")
        return self._named(" | ".join(forms))

    def _named(self, body: str) -> str:
        if body not in self._names:
            self._names[body] = f"value_{len(self._names)}"
            self.characters += len(body)
        return self._names[body]


def _short(values: list[Any] | None) -> list[Any] | None:
    """The values if they are few scalars, together at most MOST_OF_VALUES characters."""
    if values is None or len(values) > MOST_VALUES or any(isinstance(value, list | dict) for value in values):
        return None
    return values if sum(len(str(value)) for value in values) <= MOST_OF_VALUES else None


def _fits(value: Any, kinds: frozenset[str]) -> bool:
    kind = json_type(value)
    return kind in kinds or (kind == "integer" and "number" in kinds)


def _numerals(value: Any) -> list[str]:
    """Terminals for the JSON of a scalar that is no text; a whole number with a fraction has two forms."""
    whole = isinstance(value, float) and value.is_integer()
    return [_literal(to_json(value)), *([_literal(str(int(value)))] if whole else [])]


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
