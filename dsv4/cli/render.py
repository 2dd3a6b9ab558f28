"""`dsv4 render`: the prompts of requests as text, without a model."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

# the context of the released models, which limits the number of values in a request
CONTEXT = 1 << 20

if TYPE_CHECKING:
    from dsv4.encoding import Dialect, Tokenizer


def render(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)] = "-",
    *,
    dialect: str | None = None,
    model: Path | None = None,
    tokens: bool = False,
) -> None:
    """Print the prompts that the server would send to the model for given requests.

    Reads one JSON object per line, {"api": "chat" | "messages" | "responses", "body": {...}}, and prints one per line:
    {"prompt": "..."}, or {"error": {...}} as the server would answer. The exit code is 1 if there was an error.

    Parameters
    ----------
    file
        Requests; "-" is standard input.
    dialect
        v4, v4-0731 or v4.1. Default: that of the model folder.
    model
        Model folder, of which only the tokenizer and small files are read. Default: the bundled model.
    tokens
        Print the ids of each prompt too.
    """
    from dsv4.cli.folders import model_folder
    from dsv4.encoding import Tokenizer, dialect_named, dialect_of_folder
    from dsv4.server.wire.json import json_line

    folder = None if model is None and not tokens and dialect is not None else model_folder(model)
    if model is not None and folder is not None and not folder.is_dir():
        raise ValueError(f"--model {model}: no such folder")
    chosen = dialect_named(dialect) if dialect is not None else dialect_of_folder(folder or Path())
    tokenizer = Tokenizer.load(folder or Path(), dialect=chosen) if tokens else None
    failed = False
    for line in _lines(file):
        answer = _rendered(line, chosen, tokenizer)
        failed = failed or "error" in answer
        # bytes, so that a file does not depend on the terminal's encoding
        sys.stdout.buffer.write(json_line(answer) + b"\n")
    sys.stdout.flush()
    if failed:
        sys.exit(1)


def _lines(file: str) -> Iterator[bytes]:
    if file == "-":
        yield from (line for line in sys.stdin.buffer if line.strip())
        return
    with Path(file).open("rb") as lines:
        yield from (line for line in lines if line.strip())


def _rendered(line: bytes, dialect: "Dialect", tokenizer: "Tokenizer | None") -> dict[str, Any]:
    from dsv4.server.dialects.tokens import render_request
    from dsv4.server.wire.errors import ApiError
    from dsv4.server.wire.json import decode

    try:
        return render_request(decode(line, CONTEXT), dialect, tokenizer)
    except ApiError as error:
        return error.body()
