"""Messages to prompt text, byte for byte as the released encoding writes it, or the official service.

`encode_messages` has the released name and arguments. `render_segments` gives the same text in pieces that
remember whether the renderer or a message wrote them. The `dialect` selects the form.
"""

from collections.abc import Sequence

from dsv4.encoding.dialect import V4, Dialect
from dsv4.encoding.messages import (
    CALLER_ROLES,
    Message,
    Turn,
    TurnPart,
    drop_reasoning,
    expect_list,
    expect_mapping,
    expect_text,
    last_caller,
    normalise,
    without_empty_texts,
)
from dsv4.encoding.numbers import number_json
from dsv4.encoding.segments import Segment, SegmentWriter
from dsv4.encoding.write_calls import write_tool_calls

THINKING_MODES = ("chat", "thinking")
ROLES = ("system", "developer", "user", "assistant", "tool", "latest_reminder")


def encode_messages(
    messages: Sequence[Message],
    thinking_mode: str,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    reasoning_effort: str | int | None = None,
    *,
    dialect: Dialect = V4,
) -> str:
    """The prompt for a conversation, as text.

    thinking_mode: "chat" or "thinking".
    context: messages encoded before; they affect the rendering but are not rendered again, and neither is BOS.
    drop_thinking: leave out reasoning before the last user turn; ignored if any message carries tools.
    reasoning_effort: a name of `dialect.efforts` or None, where the dialect has numbers also 1 to 100; its text leads
    the prompt in thinking mode.

    Raises ValueError naming the message and field: `messages[2].content: expected a string, got None`.
    Does not modify its arguments.
    """
    segments = render_segments(
        messages,
        thinking_mode,
        context,
        drop_thinking,
        add_default_bos_token,
        reasoning_effort,
        dialect=dialect,
    )
    return "".join(segment.text for segment in segments)


def render_segments(
    messages: Sequence[Message],
    thinking_mode: str,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    reasoning_effort: str | int | None = None,
    *,
    dialect: Dialect = V4,
) -> list[Segment]:
    """`encode_messages` in pieces; their texts joined are exactly its result. Same arguments and errors."""
    if thinking_mode not in THINKING_MODES:
        raise ValueError(f"thinking_mode: expected one of {', '.join(THINKING_MODES)}, got {thinking_mode!r}")
    before, after = normalise(messages, context or [])
    turns, count = [*before, *after], len(after)
    drop = drop_thinking and not any(turn.fields.get("tools") for turn in turns)
    if drop and thinking_mode == "thinking":
        turns = drop_reasoning(turns)
        # NOTE: counted as the release counts, so a developer turn that only the longer list drops hides one
        # message
        count = max(0, len(turns) - len(drop_reasoning(before)))
    out = SegmentWriter()
    if add_default_bos_token and not before:
        out.markup(dialect.bos)
    renderer = _Renderer(turns, thinking_mode == "thinking", drop, dialect, out)
    for index in range(len(turns) - count, len(turns)):
        effort = _effort_text(reasoning_effort, dialect)
        if index == 0:
            renderer.head(effort if thinking_mode == "thinking" else "")
        renderer.turn(index)
    if not turns and dialect.service:
        renderer.empty(_effort_text(reasoning_effort, dialect) if thinking_mode == "thinking" else "")
    return out.segments()


def _effort_text(effort: str | int | None, dialect: Dialect) -> str:
    effort = dialect.default_effort if effort is None else effort
    if effort is None:
        return ""
    texts, numbers = dict(dialect.efforts), dialect.effort_number
    # True is no number here
    if numbers and type(effort) is int and 1 <= effort <= 100:
        return numbers.format(n=effort)
    if not isinstance(effort, str) or effort not in texts:
        scale = " or a number from 1 to 100" if numbers else ""
        raise ValueError(f"reasoning_effort: expected None or one of {', '.join(texts)}{scale}, got {effort!r}")
    return texts[effort]


class _Renderer:
    """Writes the turns of one conversation; the form of a turn depends on its neighbours."""

    def __init__(self, turns: Sequence[Turn], thinking: bool, drop: bool, dialect: Dialect, out: SegmentWriter) -> None:
        self.turns, self.thinking, self.drop, self.dialect, self.out = turns, thinking, drop, dialect, out
        self.last_caller = last_caller(turns)

    def head(self, effort: str) -> None:
        """The text before the first turn. In dialects with a system token the effort belongs to a system turn."""
        if effort or (self.turns and self.turns[0].role == "system"):
            self.out.markup(self.dialect.system)
        self.out.markup(effort)

    def empty(self, effort: str) -> None:
        """The prompt of a conversation without messages; it has no system turn for the effort."""
        if not self.dialect.system:
            self.head(effort)
        self._header(thinks=self.thinking)

    def turn(self, index: int) -> None:
        turn = self.turns[index]
        if self.dialect.service and turn.role == "assistant" and not self._after_task(index):
            self._header(thinks=self._keeps_reasoning(index))
        match turn.role:
            case "system":
                if index:
                    self.out.markup(self.dialect.system)
                self._system(turn)
            case "developer":
                if not turn.text("content"):
                    raise ValueError(f"{turn.source}.content: expected a non-empty string for role developer")
                self.out.markup(self.dialect.user)
                self._system(turn)
            case "user":
                self._user(turn)
            case "latest_reminder":
                self.out.markup(self.dialect.latest_reminder)
                self.out.data(expect_text(turn.fields.get("content"), f"{turn.source}.content"))
            case "assistant":
                self._assistant(index, turn)
            case _:
                raise ValueError(f"{turn.source}.role: unknown role {turn.role!r}, expected one of {', '.join(ROLES)}")
        last = index + 1 == len(self.turns)
        if last or (not self.dialect.service and self.turns[index + 1].role in ("assistant", "latest_reminder")):
            self._transition(index, turn)

    def _system(self, turn: Turn) -> None:
        self.out.data(turn.text("content"))
        if tools := turn.fields.get("tools"):
            self._tools(tools, f"{turn.source}.tools")
        response_format = turn.fields.get("response_format")
        # the script leaves out an empty schema, the service writes it
        if response_format or (response_format is not None and self.dialect.service):
            self.out.markup("\n\n" + self.dialect.response_format)
            self.out.data(number_json(response_format, f"{turn.source}.response_format", self.dialect))
        elif turn.fields.get("json_object"):
            self.out.markup("\n\n" + self.dialect.json_object)
        if added := turn.fields.get("added_tools"):
            self.out.markup("\n\n" + self.dialect.added_tools)
            self.out.data(self._schemas(added, f"{turn.source}.added_tools"))

    def _schemas(self, tools: object, where: str) -> str:
        schemas: list[str] = []
        for index, tool in enumerate(expect_list(tools, where)):
            place = f"{where}[{index}]"
            function = expect_mapping(tool, place).get("function")
            schemas.append(
                number_json(expect_mapping(function, f"{place}.function"), f"{place}.function", self.dialect)
            )
        return "\n".join(schemas)

    def _tools(self, tools: object, where: str) -> None:
        block = (
            self.dialect.tools_block.replace("{dsml}", self.dialect.dsml)
            .replace("{think_open}", self.dialect.think_open)
            .replace("{think_close}", self.dialect.think_close)
        )
        head, _, tail = block.partition("{schemas}")
        self.out.markup("\n\n" + head)
        self.out.data(self._schemas(tools, where))
        self.out.markup(tail)

    def _user(self, turn: Turn) -> None:
        self.out.markup(self.dialect.user)
        blocks = turn.blocks if self.dialect.empty_text else without_empty_texts(turn.blocks)
        for position, block in enumerate(blocks):
            if position:
                self.out.markup("\n\n")
            if block.kind == "text":
                self.out.data(expect_text(block.value, f"{block.source}.content"))
            else:
                self.out.markup(self.dialect.tool_result_open)
                self.out.data(_tool_result_text(block))
                self.out.markup(self.dialect.tool_result_close)

    def _assistant(self, index: int, turn: Turn) -> None:
        self.out.said_by = turn.source
        if not self._after_task(index) and self._keeps_reasoning(index):
            self.out.data(turn.text("reasoning_content"))
            self.out.markup(self.dialect.think_close)
        self.out.data(turn.text("content"))
        if calls := turn.fields.get("tool_calls"):
            write_tool_calls(self.out, calls, f"{turn.source}.tool_calls", self.dialect)
        if not turn.fields.get("wo_eos"):
            self.out.markup(self.dialect.eos)
        self.out.said_by = ""

    def _after_task(self, index: int) -> bool:
        return index > 0 and self.turns[index - 1].task is not None

    def _keeps_reasoning(self, index: int) -> bool:
        if self.dialect.service:  # a continued turn has the reasoning of the answer
            return self.thinking and (not self.drop or bool(self.turns[index].fields.get("wo_eos")))
        return self.thinking and (not self.drop or index > self.last_caller)

    def _transition(self, index: int, turn: Turn) -> None:
        if turn.task is not None:
            tokens = dict(self.dialect.tasks)
            if not isinstance(turn.task, str) or turn.task not in tokens:
                raise ValueError(f"{turn.source}.task: expected one of {', '.join(tokens)}, got {turn.task!r}")
            if turn.task == "action":
                self._header(thinks=self.thinking)
            self.out.markup(tokens[turn.task])
        elif self.dialect.service:
            if not turn.fields.get("wo_eos"):
                self._header(thinks=self.thinking)
        elif turn.role in CALLER_ROLES:
            self._header(thinks=self.thinking and (not self.drop or index >= self.last_caller))

    def _header(self, *, thinks: bool) -> None:
        self.out.markup(self.dialect.assistant)
        self.out.markup(self.dialect.think_open if thinks else self.dialect.think_close)


def _tool_result_text(block: TurnPart) -> str:
    """Lists of parts give their texts; other values are written as Python writes them (as released)."""
    if isinstance(block.value, str):
        return block.value
    if not isinstance(block.value, list):
        return str(block.value)
    texts: list[str] = []
    for index, part in enumerate(block.value):
        place = f"{block.source}.content[{index}]"
        fields = expect_mapping(part, place)
        if fields.get("type") == "text":
            texts.append(expect_text(fields.get("text", ""), f"{place}.text"))
        else:
            texts.append(f"[Unsupported {fields.get('type')}]")
    return "\n\n".join(texts)
