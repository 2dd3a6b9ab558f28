"""`dsv4 generate`: continue a prompt, token by token, on stdout."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dsv4.cli.engine_flags import EngineFlags, load_model
from dsv4.cli.flags import check_sampling, to_stderr
from dsv4.cli.reading_experts import until_first
from dsv4.observe import printable

if TYPE_CHECKING:
    from dsv4.api.local_model import LocalModel

DEFAULT_ENGINE = EngineFlags()


def generate(
    folder: Path | None = None,
    *,
    prompt: str | None = None,
    chat: bool = False,
    thinking: bool = True,
    max_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    engine: Annotated[EngineFlags, Parameter(name="*")] = DEFAULT_ENGINE,
) -> None:
    """Continue a prompt. The answer goes to stdout; Ctrl-C stops it.

    Parameters
    ----------
    folder
        Checkpoint folder, or the name of a pulled model. Default: the bundled model.
    prompt
        Text to continue; "-" or nothing reads standard input.
    chat
        Treat the prompt as a user's message instead of raw text.
    thinking
        With --chat: let the model think first (the reasoning goes to stderr).
    max_tokens
        Longest answer in tokens.
    temperature
        0 is greedy, at most 2. Default: the folder's generation_config.json.
    top_p
        Keep the most likely tokens that reach this probability. Default: the folder's.
    seed
        Same seed, same text.
    stop
        Text that ends the answer; repeatable.
    """
    options = check_sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if "" in stop:
        raise ValueError("--stop must not be empty")
    text = _text(prompt)
    model = load_model(folder, engine.options(), to_stderr)
    if chat:
        return _answer(model, text, thinking, {**options, "stop": stop})
    for piece in until_first(model.generate_pieces(text, stop=stop, **options)):
        _write(piece)
    print()


def _text(prompt: str | None) -> str:
    """The text to continue, from the flag or from standard input."""
    if prompt in (None, "-"):
        try:
            prompt = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input: not {error.encoding} text (byte {error.start:,})") from None
    if not prompt:
        raise ValueError("--prompt is empty")
    return prompt


def _write(text: str, to_stderr: bool = False) -> None:
    """Write text of the model, without control sequences if the output is a terminal."""
    out = sys.stderr if to_stderr else sys.stdout
    print(printable(text, lines=True) if out.isatty() else text, end="", file=out, flush=True)


def _answer(model: "LocalModel", text: str, thinking: bool, options: dict[str, Any]) -> None:
    """Write the reasoning to stderr and the answer to stdout."""
    from dsv4.encoding import ContentDelta, ReasoningDelta
    from dsv4.generation import FinishReason

    stream = model.stream([{"role": "user", "content": text}], thinking=thinking, **options)
    for delta in until_first(stream):
        if isinstance(delta, ReasoningDelta):
            _write(delta.text, to_stderr=True)
        elif isinstance(delta, ContentDelta):
            _write(delta.text)
    print()
    if stream.finish is FinishReason.ERROR:
        raise OSError(f"the engine failed: {stream.answer().completion.error}")
    if stream.finish is FinishReason.LENGTH:
        print(f"dsv4: stopped at --max-tokens {options['max_tokens']}", file=sys.stderr)
