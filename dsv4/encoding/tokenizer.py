"""From text to token ids and back, with a `tokenizer.json`.

In the released vocabulary `<｜User｜>`, `<think>` and `｜DSML｜` are ordinary added tokens: encoding turns every
occurrence of their text into the control token, and no option of the library prevents it. This file therefore uses two
tokenizers, the released one and a copy without added tokens, and two modes of encoding a conversation:

- "safe" (the default): control tokens only where the renderer wrote them; message text can never become one.
- "official": the whole prompt as one string, id for id what the release gives, and injectable like it.

Both give the same ids for every conversation whose messages hold no control text: text between two control
tokens is encoded as one run in either mode, whoever wrote its parts, so no merge is lost at a border.
"""

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

import tokenizers

from dsv4.encoding.choose_dialect import dialect_named, dialect_of_folder
from dsv4.encoding.conversation import examples_of, read_conversation
from dsv4.encoding.dialect import V4, Dialect
from dsv4.encoding.messages import Message
from dsv4.encoding.pretokens import cuts_as_released, pieces
from dsv4.encoding.render import render_segments
from dsv4.encoding.segments import Segment

FILE_NAME = "tokenizer.json"
MODES = ("safe", "official")
# longer texts are encoded in pieces and without Python's lock, so that other threads run and memory stays small
LONG_TEXT = 4096
_MARKED = re.compile(r"<[｜|].+[｜|]>", re.DOTALL)


class Tokenizer:
    """A byte-level BPE vocabulary together with the dialect whose control tokens it holds. Immutable,
    thread-safe.

    `source` is only used in error messages; `definition` is the parsed tokenizer.json.
    Raises ValueError if the definition is no tokenizer or lacks a control token of the dialect.
    """

    def __init__(self, definition: dict[str, Any], *, dialect: Dialect = V4, source: str = FILE_NAME) -> None:
        self.dialect = dialect
        definition = _settled(definition, source)
        self._definition = definition
        self._full = _build(definition, source)
        self._plain = _build({**definition, "added_tokens": []}, source)
        self._bytes_of = _byte_alphabet()
        self._known_bytes: dict[int, bytes] = {}  # of the tokens that were asked for, at most the vocabulary
        self._in_pieces = cuts_as_released(definition)
        added = {token["content"] for token in definition["added_tokens"]}
        missing = [token for token in dialect.control_tokens if token not in added]
        if missing:
            raise ValueError(f"{source}: added_tokens must hold {missing[0]!r}, a control token of {dialect.name}")
        self._controls = re.compile("(" + "|".join(map(re.escape, dialect.control_tokens)) + ")")
        self._vocab_size = self._full.get_vocab_size(with_added_tokens=True)
        # in the byte alphabet a character is a byte
        self._longest = max(map(len, self._plain.get_vocab()), default=1)
        self._control_ids = {self.token_id(token): token for token in _control_texts(definition, dialect)}

    @classmethod
    def load(cls, path: str | Path, *, dialect: Dialect | str | None = None) -> Self:
        """Read a tokenizer.json, given the file or its folder.

        dialect: a dialect or its name; None = the dialect of the folder's weights (`dialect_of_folder`). Raises
        FileNotFoundError naming the file, ValueError naming the file and what is wrong in it.
        """
        file = Path(path)
        if file.is_dir():
            file = file / FILE_NAME
        if isinstance(dialect, str):
            dialect = dialect_named(dialect)
        dialect = dialect or dialect_of_folder(file.parent)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such tokenizer file")
        try:
            definition = json.loads(file.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: not a JSON file ({error})") from error
        if not isinstance(definition, dict):
            raise ValueError(f"{file}: expected a JSON object, got {type(definition).__name__}")
        return cls(definition, dialect=dialect, source=str(file))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included (129,280 in the release)."""
        return self._vocab_size

    @property
    def longest_token(self) -> int:
        """The number of bytes of the longest token's text."""
        return self._longest

    def definition_json(self, *, marked: bool = False) -> str:
        """The tokenizer.json this was made from, without what is only for training. marked: with all `controls` marked
        as special, which the release does not do for its own."""
        if not marked:
            return json.dumps(self._definition)
        controls = {*self._control_ids.values()}
        added = [{**token, "special": token["content"] in controls} for token in self._definition["added_tokens"]]
        return json.dumps({**self._definition, "added_tokens": added})

    @property
    def bos_id(self) -> int:
        """Id of the token that begins a conversation."""
        return self.token_id(self.dialect.bos)

    @property
    def eos_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.token_id(self.dialect.eos)

    @property
    def controls(self) -> Mapping[int, str]:
        """The tokens that are not text, by id: those of the dialect, and other tokens that the vocabulary marks as
        special or writes as `<｜...｜>`."""
        return self._control_ids

    def token_id(self, text: str) -> int:
        """The id of the token written `text` in the vocabulary. Raises ValueError if there is none."""
        token = self._full.token_to_id(text)
        if token is None:
            raise ValueError(f"token {text!r} is not in the vocabulary")
        return token

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token, which may be a part of a character. Raises ValueError for unknown ids."""
        known = self._known_bytes.get(token)
        if known is None:
            known = self._known_bytes[token] = self._bytes_of_token(token)
        return known

    def _bytes_of_token(self, token: int) -> bytes:
        text = self._full.id_to_token(token) if 0 <= token < 1 << 32 else None
        if text is None:
            raise ValueError(f"token id {token} is not in the vocabulary of {self.vocab_size}")
        try:
            return bytes(self._bytes_of[char] for char in text)
        except KeyError:
            # control tokens are written as they are, with characters outside the byte alphabet
            return text.encode("utf-8")

    def encode_text(self, text: str, trusted: bool = False) -> list[int]:
        """Ids of plain text; nothing is added around it.

        Untrusted text never becomes an added token. Trusted text becomes one for every control text. Raises ValueError
        for text that is not valid Unicode (a lone surrogate), or a word of more than a million characters.
        """
        if trusted:
            return _encode(self._full, text)
        if len(text) <= LONG_TEXT or not self._in_pieces:
            return _encode(self._plain, text)
        ids: list[int] = []
        for piece in pieces(text):
            ids += _encode(self._plain, piece)
        return ids

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Ids of rendered segments in safe mode: control tokens come from trusted segments only."""
        ids: list[int] = []
        run: list[str] = []
        for segment in segments:
            pieces = self._controls.split(segment.text) if segment.trusted else [segment.text]
            # split with one group alternates: text, control, text, control, ..., text
            for position, piece in enumerate(pieces):
                if position % 2 == 0:
                    run.append(piece)
                    continue
                ids += self.encode_text("".join(run))
                ids.append(self.token_id(piece))
                run.clear()
        return ids + self.encode_text("".join(run))

    def encode_messages(
        self,
        messages: Sequence[Message],
        thinking_mode: str,
        context: Sequence[Message] | None = None,
        drop_thinking: bool = True,
        add_default_bos_token: bool = True,
        reasoning_effort: str | None = None,
        *,
        mode: Literal["safe", "official"] = "safe",
    ) -> list[int]:
        """Ids of a conversation, rendered as by `render.encode_messages` (same arguments and errors).

        mode: "safe" or "official", see the module. Raises ValueError for another one.
        """
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        segments = render_segments(
            messages,
            thinking_mode,
            context,
            drop_thinking,
            add_default_bos_token,
            reasoning_effort,
            dialect=self.dialect,
        )
        if mode == "safe":
            return self.encode_segments(segments)
        return self.encode_text("".join(segment.text for segment in segments), trusted=True)

    def encode_conversation(self, conversation: Any) -> tuple[list[tuple[list[int], list[int]]], int]:
        """What a conversation teaches: (ids, learn) of each example, where learn is 1 for what an answer says (its end
        token included) and 0 for the rest; and how many of its answers are only context.

        conversation: an object of messages, tools and mode, see `dsv4.encoding.conversation`. Message text never
        becomes a control token. Raises ValueError naming the field.
        """
        checked = read_conversation(conversation, self.dialect)
        found: list[tuple[list[int], list[int]]] = []
        for example in examples_of(checked, self.dialect):
            ids: list[int] = []
            learn: list[int] = []
            for speaker, segments in groupby(example.segments, lambda segment: segment.said_by):
                part = self.encode_segments(segments)
                ids += part
                learn += [int(speaker in example.answers)] * len(part)
            found.append((ids, learn))
        return found, checked.context

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD; unknown ids are skipped.

        `skip_special_tokens` leaves out begin, end, pad and placeholders, but not `<think>` or
        `<｜User｜>`, which the release does not mark as special.
        """
        # the library's `decode` keeps Python's lock
        return self._full.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]

    def decode_stream(self) -> "DecodeStream":
        """A fresh incremental detokenizer."""
        return DecodeStream(self)


class DecodeStream:
    """Turns ids into text one at a time, holding back bytes until their character is complete.

    The texts of all steps and of `finish` joined are what `Tokenizer.decode` gives for all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token: int) -> str:
        """The text this token completes, often empty within an emoji. Raises ValueError for an unknown id."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """The rest: U+FFFD if the last character was not completed, else nothing."""
        return self._decoder.decode(b"", final=True)


def _settled(definition: dict[str, Any], source: str) -> dict[str, Any]:
    """A definition without what trainers save in it and answers must not have: texts cut or padded to one length, and
    random merges. Raises ValueError for another kind of tokenizer."""
    model, added = definition.get("model"), definition.get("added_tokens") or []
    if not isinstance(model, dict):
        raise ValueError(f"{source}: not a tokenizer definition (model must be an object)")
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"{source}: model.type must be 'BPE', got {str(model['type'])[:40]!r}")
    if not isinstance(added, list) or not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in added):
        raise ValueError(f"{source}: added_tokens must be a list of objects with content")
    unwanted = {name: None for name in ("truncation", "padding") if definition.get(name)}
    model = {**model, "dropout": None} if model.get("dropout") else model
    return {**definition, **unwanted, "model": model, "added_tokens": added}


def _build(definition: dict[str, Any], source: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))
    # the library raises a bare Exception for every fault in a definition
    except Exception as error:
        raise ValueError(f"{source}: not a tokenizer definition ({error})") from error


def _control_texts(definition: dict[str, Any], dialect: Dialect) -> set[str]:
    added = {str(token["content"]): token for token in definition["added_tokens"]}
    marked = {text for text, token in added.items() if token.get("special") or _MARKED.fullmatch(text)}
    return marked | set(dialect.control_tokens)


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    if not text:
        return []
    try:
        if len(text) <= LONG_TEXT:
            return tokenizer.encode(text, add_special_tokens=False).ids
        # unlike `encode` it gives up Python's lock; "fast" leaves out the offsets
        return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    except TypeError as error:
        raise ValueError("text: expected valid Unicode without lone surrogates") from error


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, reversed.

    Bytes that Latin-1 prints stand for themselves; the others count up from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
