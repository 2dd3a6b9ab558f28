"""The grammar of a block of DSML calls, in the grammar engine's form of Lark: every function with its parameters."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsv4.encoding.dialect import Dialect
from dsv4.encoding.schema import GrammarError, TooLargeError, resolve
from dsv4.encoding.text_rules import Schemas

# Between the parts of JSON stands nothing, one blank, or one line break with the indentation of the next line (twelve
# levels of two blanks or of a tab): a small model may write nothing else until its answer is cut.
WHITESPACE = {"whitespace_pattern": r"( |\r?\n( {0,24}|\t{0,12}))?"}
# what a function's parameters may not say as a whole: a parameter is written on its own
NOT_AT_THE_TOP = (
    "anyOf", "oneOf", "allOf", "not", "if", "then", "else", "enum", "const", "patternProperties", "propertyNames",
    "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "unevaluatedProperties",
)  # fmt: skip
DEFINITIONS = ("$defs", "definitions")
ROOT = "the_whole_schema"
# what stands before the opening tag
OPENING = '"\\n\\n<" dsml '
MOST_CHARACTERS = 4_000_000
# of all functions together; the engine takes seconds for them, and gives up above
MOST_PARAMETERS = 4_000
# the dialects write {} for a function whose parameters a client leaves out: in OpenAI's interface it has none
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def call_rules(
    functions: Sequence[Mapping[str, Any]], dialect: Dialect, dsml: int, begin: str, *, parallel: bool
) -> str:
    """Rules from `start` on. functions: OpenAI function objects; one without `parameters` takes any, one whose
    `parameters` are {} takes none. dsml: the id of the control token. begin: the part of the opening tag that the
    grammar begins with. parallel: more than one call may follow.

    Raises GrammarError naming the function, parameter and keyword that cannot be enforced.
    """
    shaped: list[str] = []
    calls: list[str] = []
    bare: list[str] = []
    size = count = 0
    for index, function in enumerate(functions):
        one = _Function(index, function, dialect.invoke_tag)
        own = one.rules()
        if not own:
            bare.append(one.name)
            continue
        size, count = size + sum(map(len, own)), count + one.count
        if count > MOST_PARAMETERS:
            raise TooLargeError(f"tools: of all tools together at most {MOST_PARAMETERS:,} parameters can be enforced")
        if size > MOST_CHARACTERS:
            raise TooLargeError(f"tools: their grammar has more than {MOST_CHARACTERS:,} characters")
        calls.append(one.rule)
        shaped += own
    if bare:
        calls.append("call_any")
        shaped += [names_rule(bare, dialect.invoke_tag), *_bare_rules(dialect.invoke_tag)]
    return "\n".join([*block_rules(calls, dialect, dsml, begin, parallel=parallel), *shaped])


def names_rule(names: Sequence[str], tag: str) -> str:
    """The terminal NAMES: the head of a call of one of these functions. One rule for all, because the grammar engine
    fails at some thousand."""
    heads = (json.dumps(f'{tag} name="{name}">\n', ensure_ascii=False) for name in dict.fromkeys(names))
    return f"NAMES: {' | '.join(heads)}"


def _bare_rules(tag: str) -> list[str]:
    """The call of a function that has only a name: any parameters."""
    return [
        f'call_any: dsml NAMES ("\\n</" | "<" any ("\\n<" any)* "\\n</") dsml "{tag}>"',
        *_parameter("any", "KEY", {}, {}, Schemas({})),
    ]


def block_rules(calls: Sequence[str], dialect: Dialect, dsml: int, begin: str, *, parallel: bool) -> list[str]:
    """The rules around the calls, whose rules are named by `calls`, and those of the parts of all parameters."""
    more = ' ("\\n<" call)*' if parallel else ""
    return [
        # NOTE: the lexer is greedy: a line break belongs to the bracket after it, or it would end a longer one
        f'start: {begin}"<" call{more} "\\n</" dsml "{dialect.calls_tag}>"',
        "call: " + " | ".join(calls),
        f"dsml: <[{dsml}]>",
        f'open: dsml "{dialect.parameter_tag} name=\\""',
        f'close: dsml "{dialect.parameter_tag}>"',
        # a value is raw text up to the closing tag; only the control token can end it
        "RAW: /(.|\\n)*<\\//",
        'KEY: /[^"\\n]+/',
    ]


def free_block_rules(dsml: int) -> str:
    """Rules from `start` on for a block that may hold anything behind its first control token."""
    return f"start: {OPENING}(ANYTHING | dsml)*\nANYTHING: /(.|\\n)+/\ndsml: <[{dsml}]>"


def place_of(index: int, key: str | None = None) -> str:
    """The name of a function's parameters, or of one of them, in messages."""
    place = f"tools[{index}].function.parameters"
    return place if key is None else f"{place}.properties.{key:.80}"


def parameter_schemas(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of each parameter, complete in itself."""
    top, root = top_of(function.get("parameters"))
    return {key: _alone(value, root) for key, value in top.get("properties", {}).items()}


def top_of(schema: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The schema of all parameters of a function together, behind its references, and the document that references
    refer to; {} is that of a function without parameters. Raises GrammarError for one whose parameters cannot be
    listed."""
    root: Mapping[str, Any] = (schema or NO_PARAMETERS) if isinstance(schema, Mapping) else {}
    top, seen = root, 0
    while "$ref" in top and seen < len(NOT_AT_THE_TOP):
        found = resolve(top["$ref"], root)
        top, seen = found if isinstance(found, Mapping) else {}, seen + 1
    if "$ref" in top:
        raise GrammarError("$ref: refers to itself")
    for keyword in NOT_AT_THE_TOP:
        if keyword in top:
            raise GrammarError(f"{keyword}: not supported for all parameters together")
    if top.get("type", "object") not in ("object", ["object"]):
        raise GrammarError(f"type: must be object, got {top['type']!r:.80}")
    if not isinstance(top.get("properties", {}), Mapping):
        raise GrammarError("properties: must be an object")
    if not isinstance(top.get("required") or [], list):
        raise GrammarError("required: must be a list")
    return top, root


class _Function:
    """The call of one function: its parameters in the order of the schema, each at most once, required ones always."""

    def __init__(self, index: int, function: Mapping[str, Any], tag: str) -> None:
        self._tag, self.rule = tag, f"call_{index}"
        self._index, self._prefix, self.count = index, f"f{index}", 0
        name, self._schema = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name:
            raise GrammarError(f"tools[{index}].function.name must be a non-empty string, got {name!r}")
        self.name = name

    def rules(self) -> list[str]:
        """The rules of its call, none if any parameters are allowed."""
        if self._schema is not None and not isinstance(self._schema, Mapping):
            raise GrammarError(f"{place_of(self._index)} must be a JSON schema object")
        try:
            top, root = top_of(self._schema)
        except GrammarError as error:
            raise GrammarError(f"{place_of(self._index)}.{error}") from None
        properties = top.get("properties", {})
        self.count = len(properties)
        required = {str(key) for key in top.get("required") or ()}
        unknown = required - set(properties)
        if unknown:
            raise GrammarError(f"tools[{self._index}]: required names {min(unknown)!r}, which is not in properties")
        others = top.get("additionalProperties", "properties" not in top)
        if properties or others is False:
            return self._listed(properties, required, root)
        return [] if others is True or others == {} else self._free(others, root)

    def _call(self, *, some: bool, none: bool) -> str:
        head = f'{self._tag} name="{self.name}">\n'
        forms = [json.dumps(head + "\n</", ensure_ascii=False)] if none else []
        if some:
            forms.append(f'{json.dumps(head, ensure_ascii=False)} {self._prefix}_first_0 "\\n</"')
        return f'{self.rule}: dsml ({" | ".join(forms)}) dsml "{self._tag}>"'

    def _free(self, schema: Any, root: Mapping[str, Any]) -> list[str]:
        rule, self.count = f"{self._prefix}_any", 1
        try:
            parameter = _parameter(rule, "KEY", schema, root, Schemas(root))
        except GrammarError as error:
            raise GrammarError(f"{place_of(self._index)}.additionalProperties.{error}") from None
        return [
            self._call(some=True, none=True),
            f'{self._prefix}_first_0: "<" {rule} ("\\n<" {rule})*',
            *parameter,
        ]

    def _listed(self, properties: Mapping[str, Any], required: set[str], root: Mapping[str, Any]) -> list[str]:
        prefix, count = self._prefix, len(properties)
        rules = [self._call(some=bool(properties), none=not required)]
        schemas = Schemas(root)
        for i, (key, value) in enumerate(properties.items()):
            try:
                rules += _parameter(f"{prefix}_p{i}", json.dumps(key, ensure_ascii=False), value, root, schemas)
            except GrammarError as error:
                raise GrammarError(f"{place_of(self._index, key)}.{error}") from None
            skip_first = "" if key in required or i + 1 == count else f" | {prefix}_first_{i + 1}"
            skip_rest = "" if key in required else f" | {prefix}_rest_{i + 1}"
            rules.append(f'{prefix}_first_{i}: "<" {prefix}_p{i} {prefix}_rest_{i + 1}{skip_first}')
            rules.append(f'{prefix}_rest_{i}: "\\n<" {prefix}_p{i} {prefix}_rest_{i + 1}{skip_rest}')
        return [*rules, f'{prefix}_rest_{count}: ""']


def _parameter(rule: str, name: str, schema: Any, root: Mapping[str, Any], schemas: Schemas) -> list[str]:
    """One parameter: text raw, everything else as JSON, as the release writes them; a schema may allow both."""
    forms: list[str] = []
    rules: list[str] = []
    text, kinds = schemas.text(schema), schemas.other_types(schema)
    if text is not None:
        value = f"{rule.upper()}_TEXT" if text else "RAW"
        forms.append(f'open {name} "\\" string=\\"true\\">" {value} close')
        if text:
            rules.append(f'{value}: ({text}) "</"')
    if kinds:
        alone = _alone(schema, root)
        if text is not None:
            # only what is no text: numbers that are whole are numbers
            alone = {**alone, "type": [kind for kind in kinds if kind != "integer" or "number" not in kinds]}
        forms.append(f'open {name} "\\" string=\\"false\\">" {rule}_json "</" close')
        rules.append(f"{rule}_json: %json {json.dumps({**alone, 'x-guidance': WHITESPACE})}")
    if not forms:
        raise GrammarError("no value is allowed")
    return [f"{rule}: {' | '.join(forms)}", *rules]


def _alone(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with the definitions it refers to, so that it means the same outside of `root`."""
    own: dict[str, Any] = {} if schema is True else {"not": {}} if schema is False else dict(schema)
    needed: dict[str, dict[str, Any]] = {}
    whole = False
    waiting: list[Any] = [own]
    seen: set[str] = set()
    while waiting:
        for reference in _references(waiting.pop()):
            if reference in seen:
                continue
            seen.add(reference)
            parts = reference.split("/")
            if reference.startswith("#") and len(parts) > 2 and parts[1] in DEFINITIONS:
                name = parts[2].replace("~1", "/").replace("~0", "~")
                found = resolve(f"#/{parts[1]}/{parts[2]}", root)
                needed.setdefault(parts[1], {})[name] = _redirected(found)
                waiting.append(found)
            else:
                resolve(reference, root)
                whole = True
                waiting.append({key: value for key, value in root.items() if key not in DEFINITIONS})
    if whole:
        body = {key: value for key, value in root.items() if key not in DEFINITIONS}
        needed.setdefault("$defs", {})[ROOT] = _redirected(body)
    own = {key: value for key, value in own.items() if key not in DEFINITIONS}
    return {**_redirected(own), **needed} if seen else own


def _references(schema: Any) -> list[str]:
    found: list[str] = []
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if isinstance(part.get("$ref"), str):
                found.append(part["$ref"])
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def _redirected(schema: Any) -> Any:
    """References to places other than definitions are redirected to a copy of the whole schema."""
    if isinstance(schema, list):
        return [_redirected(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: _redirected(value) for key, value in schema.items()}
    reference = made.get("$ref")
    inside = isinstance(reference, str) and reference.startswith("#")
    if inside and not any(reference.startswith(f"#/{name}/") for name in DEFINITIONS):
        made["$ref"] = f"#/$defs/{ROOT}{reference[1:]}"
    return made
