"""The tokenizer of a training run: the recipe's, or one made from its texts; and its files for the export."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from dsv4.encoding import Tokenizer, train_bpe
from dsv4.files import rename, stamp, sync_path
from dsv4.training.data import FIM_TOKENS
from dsv4.training.recipe import Recipe
from dsv4.training.source_texts import files_of, texts_of

TEXTS = 20_000  # documents of each source that a tokenizer is trained on at most
_FILE, _CONFIG, _ORIGIN = "tokenizer.json", "tokenizer_config.json", "tokenizer.origin"


def tokenizer_for(recipe: Recipe, place: Path, *, goes_on: bool) -> Tokenizer:
    """The one that `data.tokenizer` names, or the run's own in `place`, made anew when its texts have changed and the
    run has not begun. Raises ValueError saying what is wrong with it."""
    if recipe.data.tokenizer is not None:
        found = Tokenizer.load(_named(recipe))
    elif goes_on and (place / _FILE).exists():
        found = Tokenizer.load(place)
    else:
        found = _own(recipe, recipe.data.vocabulary or 0, place)
    _check_ids(found, recipe.data.tokenizer or str(place / _FILE))
    return found


def text_side(recipe: Recipe, place: Path) -> dict[str, bytes]:
    """The tokenizer's files for a model folder, read now: they may be gone when the run ends. tokenizer_config.json is
    left out where there is none."""
    file = _named(recipe) if recipe.data.tokenizer is not None else place / _FILE
    if file.is_dir():
        file = file / _FILE
    config = file.with_name(_CONFIG)
    return {_FILE: file.read_bytes()} | ({_CONFIG: config.read_bytes()} if config.is_file() else {})


def _named(recipe: Recipe) -> Path:
    path = Path(recipe.data.tokenizer or "").expanduser()
    if not (path if path.suffix == ".json" else path / _FILE).is_file():
        raise ValueError(f"data.tokenizer: {path} is neither a {_FILE} nor a folder with one")
    return path


def _own(recipe: Recipe, vocabulary: int, place: Path) -> Tokenizer:
    """Trained on the text sources, whole or not there."""
    origin, known = _origin(recipe), place / _ORIGIN
    if (place / _FILE).exists() and (place / _CONFIG).exists() and known.exists() and known.read_text() == origin:
        return Tokenizer.load(place)
    staging = place / f"{_FILE}.new"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        train_bpe(_texts(recipe), vocabulary, staging, extra=FIM_TOKENS if recipe.data.fim else ())
    except ValueError as error:
        text = str(error)
        raise ValueError(f"data.vocabulary: {text}" if text.startswith("vocab_size") else text) from None
    known.write_text(origin)
    for name in (_CONFIG, _FILE):
        sync_path(staging / name)
        rename(staging / name, place / name)
    staging.rmdir()
    return Tokenizer.load(place)


def _texts(recipe: Recipe) -> Iterator[str]:
    sources = [source for source in recipe.data.sources if source.kind != "generator"]
    if not sources:
        raise ValueError("data.vocabulary: a tokenizer is trained on text; with generators alone give data.tokenizer")
    for source in sources:
        for number, text in enumerate(texts_of(source, files_of(source))):
            if number == TEXTS:
                break
            yield text


def _origin(recipe: Recipe) -> str:
    """What the run's own tokenizer follows from, files by size and time."""
    digest = hashlib.blake2b(repr((recipe.data.vocabulary, bool(recipe.data.fim))).encode(), digest_size=16)
    for source in recipe.data.sources:
        if source.kind != "generator":
            stats = [(str(file), *stamp(file)) for file in files_of(source)]
            digest.update(repr((source, stats)).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _check_ids(tokenizer: Tokenizer, where: str) -> None:
    """A model has a row for each of the first `vocab_size` ids and no other."""
    definition = json.loads(tokenizer.definition_json())
    vocabulary = definition.get("model", {}).get("vocab", {})
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
    ids += [token["id"] for token in definition.get("added_tokens", ())]
    if ids and max(ids) >= tokenizer.vocab_size:
        raise ValueError(
            f"{where}: token ids go up to {max(ids)}, but there are only {tokenizer.vocab_size} tokens; ids must be "
            f"0 to {tokenizer.vocab_size - 1} without gaps"
        )
