"""`dsv4`: every command is imported only when it is called, so that `dsv4 --help` is fast."""

import io
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import dsv4

if TYPE_CHECKING:
    from cyclopts import App

VERBS = {
    "chat": "Talk to a model in the terminal.",
    "serve": "Start the HTTP server for OpenAI and Anthropic clients.",
    "usage": "What a server has answered: tokens and costs by day, key and model.",
    "pull": "Fetch a model from a hub: flash, pro, or OWNER/NAME.",
    "generate": "Continue a prompt on stdout.",
    "render": "Print the prompts that requests become, without a model.",
    "doctor": "What this machine has for dsv4, which kernels run, and what would be faster.",
    "plan": "How a model would run on this machine: numerics, memory, speed. Loads nothing.",
    "verify": "Check a server of the model, ours or another: prompts, lengths, batches, calls, usage.",
    "eval": "Run a published benchmark against a model or a server, with standard errors.",
    "inspect": "Layer plan, parameters, cache and FLOPs of a model, beside V3.2.",
    "convert": "Write a checkpoint in another layout, or as a GGUF file.",
    "check": "Verify a checkpoint folder without loading it.",
    "export": "The command that starts a model on vLLM, SGLang or Dynamo, from published recipes.",
    "train": "Train a model from a recipe, or go on with a run.",
    "sft": "Fine-tune a model on conversations, or go on with a run.",
    "grpo": "Make a specialist by reinforcement learning, or go on with such a run.",
    "recipe": "Make a model from nothing: every stage of a chain, or those that are left.",
    "distill": "Make one student from several teachers, or go on with such a run.",
    "bench": "Measure prefill and decode speed by context length; `bench serve URL`: servers under load.",
    "simulate": "What a number of machines would serve: the real scheduler on a simulated clock.",
    "completion": "Completion of verbs and flags for bash, zsh or fish.",
}
GROUPS = {"bench"}  # verbs with verbs of their own
# in torch's message about memory that it cannot allocate
NO_MEMORY = "can't allocate memory"


def make_app(called: str = "") -> "App":
    """The command line as data; a test fixes its commands and flags. called: a verb whose help is its whole docstring,
    not one line; that of the others is not read, because it would import them."""
    from cyclopts import App

    app = App(
        name="dsv4",
        help="DeepSeek-V4 end to end. `dsv4 chat` talks to the bundled model, `dsv4 serve` starts the server.",
        version=dsv4.__version__,
    )
    for verb, summary in VERBS.items():
        summary = None if verb == called and verb not in GROUPS else summary
        app.command(f"dsv4.cli.{verb}:{'app' if verb in GROUPS else verb}", name=verb, help=summary)
    return app


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed with a message, 2 usage, 130 Ctrl-C."""
    try:
        _open_streams()
        tell_notes()
        try:
            refuse_empty(sys.argv[1:])
            make_app(*sys.argv[1:2])(sys.argv[1:])
        finally:
            _flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output has closed it
        _mute(sys.stdout)
        sys.exit(1)
    except (ValueError, OSError, MemoryError) as error:  # faults of the user or the machine: no traceback
        _fail(sentence(error))
    except RuntimeError as error:
        if NO_MEMORY not in str(error):
            raise
        _fail("there is not enough memory")


def refuse_empty(arguments: list[str]) -> None:
    """Raise ValueError for an empty argument. It is usually an unset variable of a script, and as a path it would mean
    the current folder."""
    before = ""
    for place, argument in enumerate(arguments, 1):
        flag, equals, value = argument.partition("=")
        if not argument:
            raise ValueError(f"{before} is empty" if before.startswith("-") else f"argument {place} is empty")
        if flag.startswith("--") and equals and not value:
            raise ValueError(f"{flag} is empty")
        before = argument


def sentence(error: ValueError | OSError | MemoryError) -> str:
    """The message of an error for a user: `runs/x: No space left on device`."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' and '.join(names) or 'cannot read or write'}: {error.strerror}"


def tell_notes() -> None:
    """From now on, warnings of dsv4's own code are sentences on stderr, without the place in the code that Python
    shows."""
    show, own = warnings.showwarning, f"{Path(dsv4.__file__).parent}{os.sep}"

    def tell(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and filename.startswith(own):
            from dsv4.observe import printable

            print(f"note: {printable(str(message))}", file=sys.stderr)
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = tell


def _fail(text: str) -> NoReturn:
    from dsv4.observe import printable

    _mute(sys.stdout)  # its buffer cannot be written, or holds half a line
    print(f"dsv4: {printable(text, lines=True)}", file=sys.stderr)
    sys.exit(1)


def _open_streams() -> None:
    """Replace closed standard streams by the null device; escape characters that the terminal's encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (stays open)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")  # in the C locale Python would accept wrong bytes
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Report now, not while Python exits, that the output cannot be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output: {error.strerror}") from None


def _mute(stream: TextIO) -> None:
    """Send the rest of the buffer to the null device: Python writes it at exit, and would fail."""
    try:
        number = stream.fileno()
    except OSError:  # the stream has no file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


if __name__ == "__main__":
    main()
