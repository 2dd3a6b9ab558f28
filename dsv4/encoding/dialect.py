"""What a release writes around the messages: control tokens, DSML tags and fixed prompt texts, as data.

The code of this package implements the grammar; a `Dialect` holds every literal that it writes or expects, so a later
release is a new row of the table: `V4` is the release of 24 April 2026, `V4_0731` the final weights of 31 July, which
only redefine the reasoning effort, `V41` the release of 10 September.

The scripts released with V4 and the official service write slightly different prompts. `served` returns the row of the
service; `encode_messages` keeps the script's form.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

TOOLS_BLOCK = """\
## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
"<{dsml}tool_calls>" block like the following:

<{dsml}tool_calls>
<{dsml}invoke name="$TOOL_NAME">
<{dsml}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{dsml}parameter>
...
</{dsml}invoke>
<{dsml}invoke name="$TOOL_NAME2">
...
</{dsml}invoke>
</{dsml}tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, \
arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {think_open}), you MUST output your complete reasoning inside \
{think_open}...{think_close} BEFORE any tool calls or final response.

Otherwise, output directly after {think_close} with tool calls or final response.

### Available Tool Schemas

{schemas}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""

RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"

EFFORT_NO_SHORTCUTS = """\
Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root \
cause, rigorously stress-testing your logic against all potential paths, edge cases, and adversarial \
scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, considered \
alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.

"""

EFFORT_BEYOND_MAXIMUM = """\
Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively \
decompose the problem into its most fundamental components, trace every causal chain to its root, and \
resolve the underlying cause rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and are \
certain that no assumption remains unchecked and no error remains undiscovered.

"""

EFFORT_NUMBER = "Reasoning Effort: {n} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"

JSON_OBJECT = (
    "You are a helpful assistant designed to output JSON.\n## Response Format:\n\nReply with JSON object ONLY."
)

TASK_NAMES = ("action", "query", "authority", "domain", "title", "read_url")


@dataclass(frozen=True, slots=True)
class Dialect:
    """The literals of one release. Immutable and hashable.

    `tools_block` holds the placeholders {dsml}, {think_open}, {think_close} and, once, {schemas}.
    `tasks` and `efforts` are (name, text) pairs; an effort of None is `default_effort`, or writes nothing without one.
    `effort_number` is the text of an effort given as a number 1 to 100, "" if there are none.
    `system` opens a system turn; with "" system text has no mark. With it, system messages further back stay where they
    are, and each of them is answered like a message of the user. `json_object` asks for any JSON object.

    The differences of the service to the released scripts (`service`): the header of an answer is directly before it;
    without tools no earlier reasoning is kept; arguments that are no JSON object become one parameter; numbers are
    JSON's, so that integers beyond 64 bits become fractions. Its V4 form also: no empty line in a call without
    parameters (`empty_line`), no empty messages in a user's turn (`empty_text`), exponents without a leading zero
    (`padded_exponent`).
    """

    name: str
    bos: str = "<｜begin▁of▁sentence｜>"
    eos: str = "<｜end▁of▁sentence｜>"
    pad: str = "<｜▁pad▁｜>"
    user: str = "<｜User｜>"
    assistant: str = "<｜Assistant｜>"
    think_open: str = "<think>"
    think_close: str = "</think>"
    dsml: str = "｜DSML｜"
    latest_reminder: str = "<｜latest_reminder｜>"
    tasks: tuple[tuple[str, str], ...] = tuple((task, f"<｜{task}｜>") for task in TASK_NAMES)
    calls_tag: str = "tool_calls"
    invoke_tag: str = "invoke"
    parameter_tag: str = "parameter"
    tool_result_open: str = "<tool_result>"
    tool_result_close: str = "</tool_result>"
    tools_block: str = TOOLS_BLOCK
    response_format: str = RESPONSE_FORMAT
    efforts: tuple[tuple[str, str], ...] = (("high", ""), ("max", EFFORT_NO_SHORTCUTS))
    default_effort: str | None = None
    effort_number: str = ""
    system: str = ""
    json_object: str = JSON_OBJECT
    added_tools: str = "### Updated Tool Schemas\n\n"
    namespace_separator: str = "__"
    service: bool = False
    empty_line: bool = True
    empty_text: bool = True
    padded_exponent: bool = True

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Every text that must be one token of the vocabulary; bos, eos and pad come first."""
        roles = (
            self.user,
            self.assistant,
            self.think_open,
            self.think_close,
            self.dsml,
            self.latest_reminder,
        )
        system = (self.system,) if self.system else ()
        return (self.bos, self.eos, self.pad, *roles, *system, *(token for _, token in self.tasks))

    @property
    def calls_open(self) -> str:
        """Start of a tool-call block, without the closing `>` (the parsers look for it in this form)."""
        return f"<{self.dsml}{self.calls_tag}"

    @property
    def calls_close(self) -> str:
        """End of a tool-call block."""
        return f"</{self.dsml}{self.calls_tag}>"

    @property
    def invoke_open(self) -> str:
        """Start of one call, up to its attributes."""
        return f"<{self.dsml}{self.invoke_tag}"

    @property
    def invoke_close(self) -> str:
        """End of one call, without the closing `>`."""
        return f"</{self.dsml}{self.invoke_tag}"

    @property
    def parameter_open(self) -> str:
        """Start of one parameter, up to its attributes."""
        return f"<{self.dsml}{self.parameter_tag}"

    @property
    def parameter_close(self) -> str:
        """End of one parameter, without the closing `>`."""
        return f"</{self.dsml}{self.parameter_tag}"


V4 = Dialect(name="v4")
"""Of the preview weights (24 April 2026)."""
V4_0731 = replace(
    V4,
    name="v4-0731",
    efforts=(("low", ""), ("high", EFFORT_NO_SHORTCUTS), ("max", EFFORT_BEYOND_MAXIMUM)),
)
"""Of the final weights, with other texts for the efforts of reasoning."""
V41 = replace(
    V4,
    name="v4.1",
    system="<｜System｜>",
    calls_tag=" calls",
    invoke_tag=" invoke",
    parameter_tag=" parameter",
    tools_block=TOOLS_BLOCK.replace("{dsml}tool_calls", "{dsml} calls")
    .replace("{dsml}invoke", "{dsml} invoke")
    .replace("{dsml}parameter", "{dsml} parameter"),
    efforts=tuple((name, EFFORT_NUMBER.format(n=n)) for name, n in (("low", 50), ("high", 75), ("max", 100))),
    default_effort="high",
    effort_number=EFFORT_NUMBER,
    json_object=RESPONSE_FORMAT + '{"type": "json_object"}',
    namespace_separator="::",
    service=True,
)
"""Of V4.1."""


@lru_cache
def served(dialect: Dialect) -> Dialect:
    """`dialect` as the official service writes it, which is what a server sends to the model."""
    if dialect.system:
        return replace(dialect, service=True)
    return replace(dialect, service=True, empty_line=False, empty_text=False, padded_exponent=False)
