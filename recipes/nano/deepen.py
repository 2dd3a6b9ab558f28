"""A folder with more layers that answers as the old one does, for a run to start from.

    .venv/bin/python -m recipes.nano.deepen runs/nano/recall runs/nano/deep --layers 0,1,2,3,2,3,4,3,4

A layer's first place is the layer itself; each further one is a new layer of its kind, which adds nothing yet.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dsv4.cli.__main__ import sentence
from dsv4.posttraining.deepen import save_deeper


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers of layers such as 0,1,2,2,3, got {text!r}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="a folder that loads, or that of a finished run")
    parser.add_argument("folder", type=Path, help="the new folder: float32, with the old one's tokenizer")
    parser.add_argument("--layers", type=_layers, required=True, help="the old layer at each place, bottom to top")
    asked = parser.parse_args(arguments)
    try:
        config = save_deeper(asked.folder, asked.base, asked.layers)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{sentence(error)}\n")
    print(f"{asked.folder}: {config.num_hidden_layers} layers", file=sys.stderr)


if __name__ == "__main__":
    main()
