"""generation_config.json: the sampling that a model's makers recommend, and the tokens that end an answer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsv4.config.json_file import line_of_field, parse_object, read_bounded
from dsv4.config.ranges import number, shown

# Fields that are not followed, and the values that change nothing (transformers writes its defaults for many).
_CHANGE_ANSWERS: dict[str, tuple[Any, ...]] = {
    "top_k": (0, 50),
    "min_p": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "bad_words_ids": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "forced_eos_token_id": (),
}
FILE_NAME = "generation_config.json"
LONGEST_EXAMPLE = 500


@dataclass(frozen=True, slots=True)
class GenerationAdvice:
    """temperature 0..2 (0 is greedy), top_p in (0, 1], and token ids that end an answer beside those of config.json.
    example_prompts: what its makers suggest to ask. notes: a sentence for advice that would change answers and is not
    followed."""

    temperature: float = 1.0
    top_p: float = 1.0
    end_token_ids: tuple[int, ...] = ()
    example_prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_generation(folder: Path, vocab_size: int) -> GenerationAdvice:
    """The fields of the folder's generation_config.json; the defaults if there is no such file. null means that a field
    is absent.

    do_sample false means greedy. Raises ValueError naming the file and the field.
    """
    file = folder / FILE_NAME
    if not file.exists():
        return GenerationAdvice()
    data = read_bounded(file)
    raw = {name: value for name, value in parse_object(str(file), data).items() if value is not None}
    try:
        return replace(_advice(raw, vocab_size), notes=tuple(_unused(file, raw)))
    except ValueError as error:
        line = line_of_field(data.decode("utf-8-sig"), str(error))
        raise ValueError(f"{file}{f', line {line}' if line else ''}: {error}") from None


def _unused(file: Path, raw: dict[str, Any]) -> Iterator[str]:
    """One sentence naming the fields that change what other engines answer, and not what this one does."""
    names = [name for name, neutral in _CHANGE_ANSWERS.items() if name in raw and raw[name] not in neutral]
    if names:
        verb = "is" if len(names) == 1 else "are"
        yield f"{file}: {', '.join(names)} {verb} not followed; requests may say how to sample"


def _advice(raw: dict[str, Any], vocab_size: int) -> GenerationAdvice:
    sampled = raw.get("do_sample", True)
    if not isinstance(sampled, bool):
        raise ValueError(f"do_sample must be true or false, got {shown(sampled)}")
    temperature = number("temperature", raw.get("temperature", 1.0), float, 0, 2, zero=True)
    top_p = number("top_p", raw.get("top_p", 1.0), float, 0, 1)
    ends = raw.get("eos_token_id", [])
    ids = [
        int(number("eos_token_id", end, int, 0, vocab_size - 1)) for end in (ends if isinstance(ends, list) else [ends])
    ]
    examples = _examples(raw.get("example_prompts", []))
    return GenerationAdvice(temperature if sampled else 0.0, top_p, tuple(dict.fromkeys(ids)), examples)


def _examples(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [None]
    if not all(isinstance(text, str) and 0 < len(text) <= LONGEST_EXAMPLE for text in texts):
        kind = f"a list of texts of 1 to {LONGEST_EXAMPLE} characters"
        raise ValueError(f"example_prompts must be {kind}, got {shown(value)}")
    return tuple(texts)
