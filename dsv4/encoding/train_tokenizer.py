"""Training a small vocabulary in the released form, for models that are too small for 129,280 tokens."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as BackendTokenizer

from dsv4.encoding.dialect import V4, Dialect
from dsv4.encoding.pretokens import CJK, DIGITS, WORDS
from dsv4.encoding.tokenizer import FILE_NAME, Tokenizer

CONFIG_FILE_NAME = "tokenizer_config.json"
BYTES = 256


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    folder: str | Path,
    *,
    dialect: Dialect = V4,
    extra: Sequence[str] = (),
    model_max_length: int = 1_048_576,
) -> Tokenizer:
    """Train a byte-level BPE vocabulary and write tokenizer.json and tokenizer_config.json into `folder`.

    Pre-tokenization is the release's. Ids 0, 1, 2 are begin, end and pad, the other control tokens of the
    dialect and those of `extra` follow, then the 256 bytes, then merges. Deterministic: the same texts give the same
    files. A corpus too small for `vocab_size` gives fewer tokens; read `vocab_size` of the result. Creates `folder`,
    overwrites its two files.

    Raises ValueError if `vocab_size` has no room for the control tokens and all bytes.
    """
    control = (*dialect.control_tokens, *extra)
    least = len(control) + BYTES
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} (control tokens and bytes), got {vocab_size}")
    backend = BackendTokenizer(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False) for token in control],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    definition = json.loads(backend.to_str())
    for token in definition["added_tokens"]:
        # as in the release: skipping special tokens must leave roles and thinking marks in the text
        token["special"] = token["content"] in (dialect.bos, dialect.eos, dialect.pad)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _write(target / FILE_NAME, definition)
    _write(target / CONFIG_FILE_NAME, _config(dialect, model_max_length))
    return Tokenizer.load(target, dialect=dialect)


def _pre_tokenizer() -> pre_tokenizers.Sequence:
    splits = [pre_tokenizers.Split(Regex(rule), behavior="isolated") for rule in (DIGITS, CJK, WORDS)]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _config(dialect: Dialect, model_max_length: int) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": dialect.bos,
        "eos_token": dialect.eos,
        "pad_token": dialect.pad,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
