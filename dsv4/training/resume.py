"""Check that a recipe may resume the state of a run: it must describe the same run up to that state."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv4.training.documents import Codec, Source
from dsv4.training.recipe import Recipe
from dsv4.training.recipe_fields import first_difference
from dsv4.training.schedule import past_change
from dsv4.training.settings import acting, of_any_version

_SCHEDULE = ("stages", "lr", "batch", "mtp_weights", "qat_from")
_FREE = ("run", "scale")  # they change cost and reports, not results
# where texts lie and how they are read; the documents themselves are compared
_PLACES = ("path", "suffixes", "characters", "key", "invalid")  # of a source; `init` is the place of weights


def fingerprints(sources: Sequence[Source], codec: Codec, base: str | None = None) -> dict[str, Any]:
    """Digests of tokenizer and documents: equal for equal content, wherever the files lie. base: a digest of the
    weights that the run started from."""
    definition = hashlib.blake2b(codec.definition_json().encode(errors="surrogatepass"), digest_size=16)
    found = {"tokenizer": definition.hexdigest(), "sources": [source.digest for source in sources]}
    return found if base is None else {**found, "base": base}


def check_resume(folder: Path, state: dict[str, Any], recipe: Recipe, data: dict[str, Any]) -> None:
    """Raise ValueError naming a field that would have changed the run of `state` so far, or data that differ from those
    at its beginning. May change: `run` (except its numerics), `scale`, `data.micro`, the future of the schedule."""
    if "position" not in state:  # of rollouts: its recipe has other fields
        raise ValueError(f"{folder} holds a run of another kind, which learns from rollouts: use another folder")
    raw, known = state["recipe"], state.get("data")
    made = Recipe.from_dict({**raw, "optimizer": of_any_version(raw.get("optimizer", {}))})
    own, other = _compared(recipe, known is not None), _compared(made, known is not None)
    found = first_difference(other, own)
    if found is None and (field := past_change(made.schedule, recipe.schedule, state["position"]["tokens"])):
        found = field, _value(made.to_dict(), field), _value(recipe.to_dict(), field)
    if found is not None:
        field, was, now = found
        raise ValueError(
            f"{folder} was made with another recipe: {field} differs (it was {was!r}, now it is {now!r}); "
            f"use another folder, or set {field} back to its old value"
        )
    if known is None:
        return
    if known["tokenizer"] != data["tokenizer"]:
        raise ValueError(f"{folder} was made with another tokenizer: put it back, or use another folder")
    if known.get("base") != data.get("base"):
        raise ValueError(f"{folder} was started from other weights than {recipe.init} has: use another folder")
    for settings, before, after in zip(recipe.data.sources, known["sources"], data["sources"], strict=True):
        if before != after:
            raise ValueError(
                f"source {settings.name}: {settings.path} has changed since the run in {folder} began: a run goes on "
                f"with the documents it began with; put them back, or use another folder"
            )


def _compared(recipe: Recipe, data_is_known: bool) -> dict[str, Any]:
    """The fields that must be the same."""
    raw = recipe.to_dict()
    kept = {name: value for name, value in raw.items() if name not in (*_SCHEDULE, *_FREE)}
    kept["run"] = {"numerics": raw["run"]["numerics"]}
    kept["optimizer"] = acting(raw["optimizer"])
    kept["data"] = {name: value for name, value in raw["data"].items() if name != "micro"}
    if data_is_known:
        kept["data"].pop("tokenizer")
        kept["init"] = kept["init"] is not None
        kept["data"]["sources"] = [
            {k: v for k, v in source.items() if source["kind"] == "generator" or k not in _PLACES}
            for source in raw["data"]["sources"]
        ]
    return kept


def _value(raw: Any, field: str) -> Any:
    """What lies under a dotted name; None where a list is shorter."""
    first, _, rest = field.partition(".")
    if isinstance(raw, list):
        raw = dict(enumerate(raw))
        return _value(raw.get(int(first)), rest) if rest else raw.get(int(first))
    return _value(raw[first], rest) if rest else raw[first]
