"""`dsv4 chat`: a conversation in the terminal, thinking dimmed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dsv4.cli.engine_flags import EngineFlags, load_model

if TYPE_CHECKING:
    from dsv4.api.local_model import LocalModel
    from dsv4.cli.chat_commands import Commands
    from dsv4.cli.chat_input import Editor, PlainLines
    from dsv4.cli.chat_screen import Screen

DEFAULT_EFFORT = "high"
SHOWN_EXAMPLES = 4
DEFAULT_ENGINE = EngineFlags()


def chat(
    folder: Path | None = None,
    *,
    thinking: bool = True,
    effort: str | None = None,
    system: str | None = None,
    max_tokens: int = 1024,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    engine: Annotated[EngineFlags, Parameter(name="*")] = DEFAULT_ENGINE,
) -> None:
    """Chat with a model in the terminal. /help lists the commands.

    Parameters
    ----------
    folder
        Checkpoint folder, or the name of a pulled model. Default: the bundled model.
    thinking
        Let the model think before it answers; its reasoning is dimmed.
    effort
        Reasoning effort: none, low, high or max. Not every model has all of them.
    system
        System message.
    max_tokens
        Longest answer in tokens.
    temperature
        0 is greedy, at most 2. Default: the folder's generation_config.json.
    top_p
        Keep the most likely tokens that reach this probability. Default: the folder's.
    seed
        Same seed, same conversation.
    """
    from rich.console import Console

    from dsv4.cli.flags import check_sampling

    options = check_sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if not thinking and effort not in (None, "none"):
        raise ValueError(f"--effort must be none with --no-thinking, got {effort}")
    _check_effort(folder, engine.dialect, effort)
    wanted, console = engine.options(), Console(stderr=True)
    with console.status("loading"):
        model = load_model(folder, wanted, lambda line: console.print(line, style="dim", markup=False, soft_wrap=True))
    _converse(model, effort or (DEFAULT_EFFORT if thinking else "none"), system, options)


def _check_effort(folder: Path | None, dialect: str | None, effort: str | None) -> None:
    """Raise ValueError for an --effort that the model does not have, before it is loaded."""
    from dsv4.api.folders import model_folder
    from dsv4.encoding import dialect_named, dialect_of_folder
    from dsv4.server.dialects.request import supported_efforts

    if effort in (None, DEFAULT_EFFORT):
        return
    known = supported_efforts(dialect_named(dialect) if dialect else dialect_of_folder(model_folder(folder)))
    if effort not in known:
        raise ValueError(f"--effort must be one of {', '.join(known)}, got {effort}")


def _converse(model: "LocalModel", effort: str, system: str | None, options: dict[str, Any]) -> None:
    """Read lines and answer them until the end of input or /exit."""
    from dsv4.cli.chat_commands import Commands
    from dsv4.cli.chat_screen import Screen
    from dsv4.cli.conversation import ChatSession

    screen = Screen()
    commands = Commands(model, ChatSession(system), effort, screen.note)
    screen.head(
        f"{model.name}, context {model.engine.context_length:,} tokens. /help lists the commands, Ctrl-D leaves."
    )
    if model.defaults.example_prompts:
        screen.head(f"Try: {'  |  '.join(model.defaults.example_prompts[:SHOWN_EXAMPLES])}")
    reader = _reader(commands, screen)
    while not commands.over:
        try:
            line = reader.read()
            if line is None:
                return
            _take(line, commands, screen, options)
        except KeyboardInterrupt:  # in a terminal Ctrl-C does not end the conversation
            if not screen.terminal:
                raise


def _reader(commands: "Commands", screen: "Screen") -> "Editor | PlainLines":
    from dsv4.cli.chat_input import Editor, PlainLines, history_file

    if sys.stdin is None or not (sys.stdin.isatty() and screen.terminal):
        return PlainLines()
    return Editor(commands.complete, screen.note, history_file())


def _take(line: str, commands: "Commands", screen: "Screen", options: dict[str, Any]) -> None:
    """Handle one line of the user: a command or a message. An error is shown, and the conversation continues."""
    text = line.strip()
    talk = commands.talk
    if not text:
        return
    asked = None
    try:
        if text.startswith("/") and not text.startswith("//"):
            commands.run(text)
            if not commands.wanted:
                return
            commands.wanted = False
        else:
            asked = talk.said(text[1:] if text.startswith("//") else text)
            talk.turns.append(asked)
        _answer(commands, screen, options)
        if asked is not None:
            talk.files = []
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        screen.problem(_sentence(error))
        if asked is not None and talk.turns and talk.turns[-1] is asked:
            talk.turns.pop()


def _sentence(error: ValueError | OSError) -> str:
    from dsv4.cli.__main__ import sentence
    from dsv4.generation import ContextLengthError

    if isinstance(error, ContextLengthError):
        return (
            f"the conversation would have {error.prompt_tokens:,} tokens, and the context holds "
            f"{error.context_length:,}: /undo takes the last turn back, /file - drops files, /clear starts over"
        )
    return sentence(error)


def _answer(commands: "Commands", screen: "Screen", options: dict[str, Any]) -> None:
    """Stream one answer; the conversation keeps the part of an answer that was stopped."""
    from dsv4.cli.chat_screen import AnswerView, remark
    from dsv4.cli.reading_experts import until_first

    model, talk, view = commands.model, commands.talk, AnswerView(screen)
    stopped = False
    with model.stream(talk.messages, effort=commands.effort, **options) as stream:
        try:
            for delta in until_first(stream):
                view.show(delta)
        except KeyboardInterrupt:
            if not screen.terminal:
                raise
            stopped = True
        answer = stream.answer()
    if answer.content or answer.reasoning:
        talk.turns.append(answer.message)
    view.end()
    if stopped:
        screen.note("[stopped; /retry answers again, /undo takes the message back]")
    elif note := remark(answer, options["max_tokens"], model.engine.context_length):
        screen.problem(f"[{note}]")
    screen.note(view.speed(answer))
