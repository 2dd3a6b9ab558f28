"""The input of `dsv4 chat`: a line editor in a terminal, plain lines elsewhere."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import Output

MARK = "> "
MOST_HISTORY = 1 << 20  # bytes; the older half of a larger file is dropped
Complete = Callable[[str], Iterable[str]]


def history_file() -> Path | None:
    """The file of the history, in XDG_STATE_HOME or ~/.local/state; None without a home folder."""
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "dsv4" / "chat_history"
    except RuntimeError:
        return None


class PlainLines:
    """Standard input line by line."""

    def __init__(self) -> None:
        self._number = 0

    def read(self) -> str | None:
        """The next line; None at the end of input. Raises ValueError for bytes that are not text."""
        if sys.stdin is None:
            return None
        if sys.stdin.isatty():
            print(MARK, end="", file=sys.stderr, flush=True)
        self._number += 1
        try:
            return sys.stdin.readline() or None
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input: not {error.encoding} text, in line {self._number} or later") from None


class Editor:
    """Lines with editing, history, completion and pasted line breaks. Enter sends; Alt-Enter, or a backslash before
    Enter, begins a new line. complete: completions of a line. note: shows that the history cannot be kept.
    """

    def __init__(
        self,
        complete: Complete,
        note: Callable[[str], None],
        file: Path | None,
        *,
        input: "Input | None" = None,
        output: "Output | None" = None,
    ) -> None:
        from prompt_toolkit import PromptSession

        self._session = PromptSession[str](
            MARK,
            history=_history(file, note),
            completer=_completer(complete),
            complete_while_typing=True,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="  ",
            input=input,
            output=output,
        )

    def read(self) -> str | None:
        """The next text; None at the end of input. Raises KeyboardInterrupt for Ctrl-C, which clears the line."""
        try:
            return self._session.prompt()
        except EOFError:
            return None


def _keys() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer(complete: Complete) -> "Completer":
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Words(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            line = document.text_before_cursor
            if "\n" in line:
                return
            for word in complete(line):
                begun = line[line.find(" ") + 1 :] if " " in line else line
                yield Completion(word, start_position=-len(begun))

    return Words()


def _history(file: Path | None, note: Callable[[str], None]) -> "History":
    """The history in a file that only its owner can read; in memory if there is no such file."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        told = False

        def store_string(self, string: str) -> None:
            try:
                super().store_string(string)
            except OSError as error:
                if not self.told:
                    note(f"history is not kept: {error}")
                self.told = True

    if file is None:
        return InMemoryHistory()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        file.chmod(0o600)
        if file.stat().st_size > MOST_HISTORY:
            kept = file.read_bytes()[-MOST_HISTORY // 2 :]
            file.write_bytes(kept[kept.find(b"\n#") + 1 :])
    except OSError as error:
        note(f"history is not kept: {error}")
        return InMemoryHistory()
    return Kept(str(file))
