"""What a release writes around the messages: control tokens, DSML tags and fixed prompt texts, as data.

The code in this package knows the grammar; every literal it writes or expects stands in a `Dialect`, so a
later release is a new instance. `V4` is the release of 24 April 2026, `V4_0731` the final weights of 31
July, which only redefine the reasoning effort.
"""

from dataclasses import dataclass, replace

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

TASK_NAMES = ("action", "query", "authority", "domain", "title", "read_url")


@dataclass(frozen=True, slots=True)
class Dialect:
    """The literals of one release. Immutable and hashable.

    `tools_block` holds the placeholders {dsml}, {think_open}, {think_close} and, once, {schemas}.
    `tasks` and `efforts` are (name, text) pairs; an effort of None always writes nothing.
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
        return (self.bos, self.eos, self.pad, *roles, *(token for _, token in self.tasks))

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
V4_0731 = replace(
    V4,
    name="v4-0731",
    efforts=(("low", ""), ("high", EFFORT_NO_SHORTCUTS), ("max", EFFORT_BEYOND_MAXIMUM)),
)
