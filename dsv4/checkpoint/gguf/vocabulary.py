"""A folder's tokenizer.json as the keys `tokenizer.ggml.*` of a GGUF file, both ways.

Both hold the same byte-level BPE: texts of tokens in the order of their ids, the kind of each, merges. A GGUF file has
a name in place of the patterns that cut a text before the merges; V4's patterns have two names. A tokenizer with other
patterns cannot be written, one under another name cannot be read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv4.checkpoint.format import CheckpointError
from dsv4.checkpoint.gguf.container import GgufFile, MetadataValue, Scalars
from dsv4.checkpoint.tokenizer_file import FILE_NAME
from dsv4.config.ranges import shown

_KEY = "tokenizer.ggml."
_MODEL = "gpt2"  # byte-level BPE
_PATTERNS = ("joyai-llm", "deepseek-v3")  # names of V4's patterns; flyweight knows only the first
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        *(
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in _SPLITS
        ),
        _BYTE_LEVEL,
    ],
}
_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def vocabulary_keys(
    folder: Path, definition: Mapping[str, Any], vocab_size: int, bos: int, eos: int
) -> dict[str, MetadataValue]:
    """The keys for a parsed tokenizer.json of a folder, its ids being checked (`size_notes`).

    Ids up to `vocab_size` that it does not use become padding.
    Raises CheckpointError naming the file where such keys cannot describe the tokenizer.
    """
    file, model = folder / FILE_NAME, definition.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{file}: model.type must be BPE with a vocab for a GGUF file")
    if definition.get("pre_tokenizer") != _PRE_TOKENIZER:
        raise CheckpointError(f"{file}: pre_tokenizer is not DeepSeek-V4's: a GGUF file has no name for it")
    if definition.get("normalizer") is not None:
        raise CheckpointError(f"{file}: normalizer must be null: a GGUF file has no place for one")
    texts: dict[int, str] = {id_: text for text, id_ in model["vocab"].items()}
    kinds = dict.fromkeys(texts, _NORMAL)
    for token in definition.get("added_tokens") or ():
        if not isinstance(token.get("content"), str):
            raise CheckpointError(f"{file}: added_tokens: content must be a text, got {shown(token.get('content'))}")
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = _CONTROL if token.get("special") else _USER_DEFINED
    merges = [_merge_text(file, merge) for merge in model.get("merges") or ()]
    ids = range(vocab_size)
    keys: dict[str, MetadataValue] = {
        "model": _MODEL,
        "pre": _PATTERNS[0],
        "tokens": [texts.get(i, f"[PAD{i}]") for i in ids],
        "token_type": Scalars("i", [kinds.get(i, _UNUSED) for i in ids]),
        "merges": merges,
        "bos_token_id": Scalars("I", [bos], array=False),
        "eos_token_id": Scalars("I", [eos], array=False),
        "add_bos_token": Scalars("?", [False], array=False),
        "add_eos_token": Scalars("?", [False], array=False),
    }
    return {_KEY + name: value for name, value in keys.items()}


def _merge_text(file: Path, merge: Any) -> str:
    """Both spellings of a merge, "a b" and ["a", "b"], as the first."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise CheckpointError(f"{file}: model.merges must be pairs of texts, got {shown(merge)}")
    return " ".join(parts)


def tokenizer_definition(opened: GgufFile, vocab_size: int) -> dict[str, Any] | None:
    """The tokenizer.json that the keys of a model of `vocab_size` tokens describe; None for a file without a
    vocabulary.

    Raises CheckpointError naming file and key.
    """
    keys = opened.metadata
    if f"{_KEY}tokens" not in keys:
        return None
    for name, allowed in (("model", (_MODEL,)), ("pre", _PATTERNS)):
        if keys.get(_KEY + name) not in allowed:
            text = f"must be {' or '.join(allowed)}, got {shown(keys.get(_KEY + name))}"
            raise CheckpointError(f"{opened.file}: {_KEY}{name} {text}: its tokenizer is not DeepSeek-V4's")
    tokens = _texts(opened, "tokens")
    if len(tokens) != vocab_size:
        text = f"must have {vocab_size:,} texts, as many as the model has tokens, got {len(tokens):,}"
        raise CheckpointError(f"{opened.file}: {_KEY}tokens {text}")
    kinds = keys.get(f"{_KEY}token_type") or [_NORMAL] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise CheckpointError(f"{opened.file}: {_KEY}token_type must have an entry for each of {len(tokens):,} tokens")
    # added tokens too: the library tokenizers gives those that the vocabulary lacks new ids at its end
    vocabulary = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED}
    added = [_added(i, text, kind) for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token for token in added if token is not None],
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZER,
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": _DECODER,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [_merge(opened, text, vocabulary) for text in _texts(opened, "merges")],
        },
    }


def _added(id_: int, text: str, kind: int) -> dict[str, Any] | None:
    if kind not in (_CONTROL, _USER_DEFINED):
        return None
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": text, **flags, "special": kind == _CONTROL}


def _texts(opened: GgufFile, name: str) -> list[str]:
    found = opened.metadata.get(_KEY + name)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise CheckpointError(f"{opened.file}: {_KEY}{name} must be a list of texts, got {shown(found)}")
    return found


def _merge(opened: GgufFile, text: str, vocabulary: Mapping[str, int]) -> list[str]:
    parts = text.split(" ")
    if len(parts) != 2 or not all(part in vocabulary for part in (*parts, "".join(parts))):
        raise CheckpointError(f"{opened.file}: {_KEY}merges: {shown(text)} must join two tokens to a third")
    return parts
