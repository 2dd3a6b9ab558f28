"""The commands of `dsv4 chat`: lines that begin with a slash."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4.cli.conversation import ChatSession, fits, read_text
from dsv4.server.dialects.request import supported_efforts

if TYPE_CHECKING:
    from dsv4.api.local_model import LocalModel

HELP = """\
/system TEXT   set the system message; /system shows it, /system - removes it
/effort NAME   set the reasoning effort: {efforts}
/file PATH     put a text file before the next message; /file lists the files, /file - drops them
/retry         answer the last message again
/undo          remove the last message and its answer
/clear         start a new conversation with the same system message
/save FILE     write the conversation as a JSON list of messages
/load FILE     continue a saved conversation
/help          show this list
/exit          leave; so does Ctrl-D
A line that begins with // is sent with one slash. Alt-Enter, or a backslash at the end, begins a new line.
Ctrl-C stops an answer, or clears what is typed."""

# names of earlier versions and of other programs
ALIASES = {"/new": "/clear", "/quit": "/exit", "/think": "/effort high", "/nothink": "/effort none"}
WITH_FILES = ("/file", "/save", "/load")


@dataclass(slots=True)
class Commands:
    """Executes commands on a conversation. note: shows their output.

    effort: the reasoning effort of the next answers. wanted: the last message needs an answer. over: the user leaves.
    """

    model: "LocalModel"
    talk: ChatSession
    effort: str
    note: Callable[[str], None]
    wanted: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False)

    @property
    def efforts(self) -> tuple[str, ...]:
        return supported_efforts(self.model.tokenizer.dialect)

    def run(self, line: str) -> None:
        """Execute one line. Raises ValueError or OSError with a message for the user."""
        name, _, rest = line.partition(" ")
        if name in ALIASES:
            name, _, rest = f"{ALIASES[name]} {rest}".partition(" ")
        command = self._table().get(name)
        if command is None:
            raise ValueError(f"unknown command {name}; /help lists them, // sends a line that begins with a slash")
        command(rest.strip())

    def complete(self, line: str) -> Iterator[str]:
        """Completions of the last word of a line."""
        name, space, rest = line.partition(" ")
        if not line.startswith("/"):
            return
        if not space:
            yield from (command for command in self._table() if command.startswith(name))
        elif name == "/effort":
            yield from (effort for effort in self.efforts if effort.startswith(rest))
        elif name in WITH_FILES:
            yield from _paths(rest)

    def prompt_tokens(self, line: str = "") -> int:
        """The tokens of the conversation with `line` as its next message."""
        return len(self.model.encode_chat([*self.talk.messages, self.talk.said(line)]))

    def _table(self) -> dict[str, Callable[[str], None]]:
        return {
            "/system": self._system,
            "/effort": self._effort,
            "/file": self._file,
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: self.note(HELP.format(efforts=", ".join(self.efforts))),
            "/exit": self._exit,
        }

    def _system(self, text: str) -> None:
        if text:
            self.talk.system = None if text == "-" else text
        self.note(f"system: {self.talk.system or 'none'}")

    def _effort(self, name: str) -> None:
        name = name.split()[0] if name.split() else ""
        if name and name not in self.efforts:
            raise ValueError(f"effort must be one of {', '.join(self.efforts)}, got {name}")
        self.effort = name or self.effort
        self.note(f"effort: {self.effort}")

    def _file(self, text: str) -> None:
        talk, context = self.talk, self.model.engine.context_length
        if text == "-":
            talk.files = []
        if text in ("", "-"):
            self.note(f"files for the next message: {', '.join(name for name, _ in talk.files) or 'none'}")
            return
        file = _path(text)
        content = read_text(file)
        tokens = len(self.model.tokenizer.encode_text(content))
        used = self.prompt_tokens()
        if used + tokens >= context:
            raise ValueError(
                f"{file.name} has {tokens:,} tokens, and {max(0, context - used - 1):,} fit beside this conversation "
                f"(the context holds {context:,}): /clear starts over, a shorter file may do"
            )
        talk.files.append((file.name, content))
        self.note(f"{file.name}: {tokens:,} tokens, sent with the next message; {fits(self.prompt_tokens(), context)}")

    def _retry(self, _: str) -> None:
        if not self.talk.reopen():
            raise ValueError("nothing has been asked yet")
        self.wanted = True

    def _undo(self, _: str) -> None:
        text = self.talk.undo()
        if text is None:
            raise ValueError("there is nothing to take back")
        line = text.strip().splitlines()[-1] if text.strip() else ""
        self.note(f"taken back: {line[:80]}")

    def _clear(self, _: str) -> None:
        self.talk.clear()
        self.note("a new conversation")

    def _save(self, text: str) -> None:
        file = _path(text)
        self.talk.save(file)
        self.note(f"{file}: {len(self.talk.messages)} messages")

    def _load(self, text: str) -> None:
        file = _path(text)
        self.talk.load(file)
        self.note(
            f"{file}: {len(self.talk.messages)} messages; "
            f"{fits(self.prompt_tokens(), self.model.engine.context_length)}"
        )

    def _exit(self, _: str) -> None:
        self.over = True


def _path(text: str) -> Path:
    """The path that the user typed, with ~ and quotes resolved."""
    bare = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    if not bare:
        raise ValueError("a file's name is missing")
    try:
        return Path(bare).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{bare}: {error}") from None


def _paths(begun: str) -> Iterable[str]:
    """Files and folders whose paths begin with `begun`."""
    folder, slash, start = begun.rpartition("/")
    place = Path(folder + slash or ".").expanduser()
    try:
        entries = sorted(place.iterdir())[:1000]
    except OSError:
        return []
    shown = (entry for entry in entries if start.startswith(".") or not entry.name.startswith("."))
    return [f"{folder}{slash}{e.name}{'/' if e.is_dir() else ''}" for e in shown if e.name.startswith(start)]
