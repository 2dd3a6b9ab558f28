"""Loads the tokenizer of a model folder and tests it on a few texts."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4.checkpoint.tokenizer_file import FILE_NAME, read_tokenizer_file, size_notes
from dsv4.encoding import Tokenizer, dialect_named, dialect_of_folder

if TYPE_CHECKING:
    from dsv4.checkpoint import CheckReport

_PROBES = ("Hello, world! 1234567\n\n  x", "\u00e9\u4f60\u597d \U0001f600", "")


def load_tokenizer(folder: Path, vocab_size: int | None = None, dialect: str | None = None) -> Tokenizer | None:
    """The tokenizer of a model's folder, or None where it has no tokenizer.json. Warns of a padded vocabulary.

    dialect: as in `Tokenizer.load`.

    Raises ValueError naming the file for one that cannot be read, that fails on ordinary text, or that has more
    tokens than the model.
    """
    definition = read_tokenizer_file(folder)
    if definition is None:
        return None
    file = folder / FILE_NAME
    for note in size_notes(folder, definition, vocab_size) if vocab_size is not None else ():
        warnings.warn(note, stacklevel=3)
    try:
        spoken = dialect_named(dialect) if dialect is not None else dialect_of_folder(folder)
        tokenizer = Tokenizer(definition, dialect=spoken, source=str(file))
        for text in _PROBES:
            tokenizer.encode_text(text)
    except BaseException as error:
        # a panic of the library is no Exception, so no other handler would catch it
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{file}: the tokenizers library fails on it: {error}") from None
    return tokenizer


def check_tokenizer(report: "CheckReport") -> "CheckReport":
    """`report` with the problems that `load_tokenizer` finds."""
    if any("tokenizer.json: " in problem for problem in report.problems):
        return report  # it already has them
    try:
        load_tokenizer(Path(report.folder))
    except (ValueError, OSError) as error:
        return replace(report, problems=(*report.problems, str(error)))
    return report
