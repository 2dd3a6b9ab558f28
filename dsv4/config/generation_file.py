"""generation_config.json: the sampling that a model's makers recommend, and the tokens that end an answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4.config.json_file import line_of_field, parse_object, read_bounded
from dsv4.config.ranges import number, shown

FILE_NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationAdvice:
    """temperature 0..2 (0 is greedy), top_p in (0, 1], and token ids that end an answer beside those of config.json."""

    temperature: float = 1.0
    top_p: float = 1.0
    end_token_ids: tuple[int, ...] = ()


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
        return _advice(raw, vocab_size)
    except ValueError as error:
        line = line_of_field(data.decode("utf-8-sig"), str(error))
        raise ValueError(f"{file}{f', line {line}' if line else ''}: {error}") from None


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
    return GenerationAdvice(temperature if sampled else 0.0, top_p, tuple(dict.fromkeys(ids)))
