"""`dsv4 chat`: a conversation in the terminal, thinking dimmed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from dsv4.cli.local import LocalModel

HELP = "/think and /nothink switch thinking, /new starts over, /quit leaves; Ctrl-C stops an answer, Ctrl-D leaves."


def chat(
    folder: Path | None = None,
    *,
    thinking: bool = True,
    system: str | None = None,
    max_tokens: int = 1024,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    mode: Literal["fp32", "bf16", "release"] = "fp32",
) -> None:
    """Talk to a model in the terminal.

    Parameters
    ----------
    folder
        Checkpoint folder. Default: the bundled model.
    thinking
        Show the model's thought (dimmed) before its answer.
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
    mode
        fp32, bf16, or release (the released quantised numerics).
    """
    from rich.console import Console

    from dsv4.cli.local import load
    from dsv4.generation import SamplingParams

    options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    # complain about a bad flag before loading
    SamplingParams(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    console = Console(highlight=False)
    with console.status("loading"):
        model = load(folder, mode)
    console.print(f"[bold]{model.name}[/bold], context {model.engine.context_length:,} tokens. {HELP}", soft_wrap=True)
    start = [{"role": "system", "content": system}] if system else []
    _converse(model, console, start, thinking, options)


def _converse(
    model: "LocalModel",
    console: "Console",
    start: list[dict[str, Any]],
    thinking: bool,
    options: dict[str, Any],
) -> None:
    """Read lines until the end of input; lines with a slash are commands."""
    messages: list[dict[str, Any]] = list(start)
    while True:
        try:
            line = console.input("[bold green]> [/bold green]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/quit":
            return
        if line == "/new":
            messages = list(start)
        elif line in ("/think", "/nothink"):
            thinking = line == "/think"
        elif line.startswith("/"):
            console.print(HELP, soft_wrap=True)
        elif line:
            messages.append({"role": "user", "content": line})
            _turn(model, console, messages, thinking, options)


def _turn(
    model: "LocalModel",
    console: "Console",
    messages: list[dict[str, Any]],
    thinking: bool,
    options: dict[str, Any],
) -> None:
    """Stream one answer; a stopped one stays in the conversation as far as it got."""
    from dsv4.encoding import ContentDelta, ReasoningDelta

    content, reasoning = "", ""
    try:
        with model.stream(messages, thinking=thinking, **options) as stream:
            for delta in stream:
                if isinstance(delta, ReasoningDelta):
                    reasoning += delta.text
                    console.print(delta.text, end="", style="dim", markup=False, soft_wrap=True)
                elif isinstance(delta, ContentDelta):
                    if reasoning and not content:
                        console.print()
                    content += delta.text
                    console.print(delta.text, end="", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" [stopped]", style="dim", markup=False, end="")
    except ValueError as error:
        console.print(f"{error}. /new starts over.", style="red", markup=False)
        messages.pop()
        return
    console.print()
    messages.append({"role": "assistant", "content": content, "reasoning_content": reasoning})
