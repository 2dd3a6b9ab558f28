"""What `dsv4 bench` measures with: our engine, and transformers on the same folder.

T tokens of the prompt.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dsv4.bench.memory import peak_bytes, reset_peak
from dsv4.generation import PromptProgress, RequestOptions, SamplingParams


@dataclass(frozen=True, slots=True)
class Speed:
    """One measured row; rates in tokens per second, one sequence."""

    engine: str
    mode: str
    context: int
    prefill_rate: float
    decode_rate: float
    cache_bytes: int
    peak_bytes: int = 0  # of the process, or of its tensors on a card, while this row ran

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def random_prompt(vocabulary: int, length: int, seed: int = 0) -> list[int]:
    """The same random tokens for every engine, control tokens left out."""
    generator = torch.Generator().manual_seed(length + 1_000_003 * seed)
    return torch.randint(min(64, vocabulary - 1), vocabulary, (length,), generator=generator).tolist()


class Ours:
    """Our engine on a folder. options: of dsv4.load; by default one sequence, and a context of `context`."""

    name = "dsv4"

    def __init__(self, folder: Path, context: int, **options: Any) -> None:
        from dsv4.api.loading import load
        from dsv4.cache.prefix import ReusePolicy

        # every row computes all of its prompt
        wanted: dict[str, Any] = {"sequences": 1, **options, "reuse": ReusePolicy(snapshots=0)}
        wanted["context_length"] = wanted.get("context_length") or context
        self.model = load(folder, **wanted)
        self.model.engine.ends = frozenset()  # random weights may say the end token early; time what was asked for
        self.run(1, 1)  # the first step pays for caches of the libraries
        gc.collect()
        gc.freeze()  # as `dsv4 serve` does

    def run(
        self, context: int, decode: int, progress: Callable[[PromptProgress], None] | None = None, seed: int = 0
    ) -> Speed:
        """Prefill `context` tokens, then decode `decode` more; the first decoded token ends the prefill."""
        prompt = random_prompt(self.model.config.vocab_size, context, seed)
        params = SamplingParams(max_tokens=decode + 1, temperature=0)
        spec = self.model.engine.cache.store.spec
        times = [time.perf_counter()]
        reset_peak(self.model.model.device)
        for event in self.model.engine.generate(prompt, params, RequestOptions(progress=progress is not None)):
            if event.token is not None:
                times.append(time.perf_counter())
            elif event.progress is not None and progress is not None:
                progress(event.progress)
        assert len(times) == decode + 2, f"{len(times) - 1} tokens came, {decode + 1} were asked for"
        size = spec.total_bytes(spec.pages_for(context), 1)
        rate = decode / (times[-1] - times[1])
        prefill = context / (times[1] - times[0])
        return Speed(self.name, self.model.mode, context, prefill, rate, size, peak_bytes(self.model.model.device))


class Transformers:
    """transformers' own implementation, dequantised to fp32 or bf16, with its key-value cache."""

    name = "transformers"

    def __init__(self, folder: Path, dtype: Literal["fp32", "bf16"] = "fp32") -> None:
        try:
            from transformers import DeepseekV4ForCausalLM
        except ImportError:
            raise ValueError("--peer needs transformers: `python3 run.py test` installs it") from None
        model = DeepseekV4ForCausalLM.from_pretrained(folder).eval()
        self._model, self._dtype = model.float() if dtype == "fp32" else model.bfloat16(), dtype
        self.run(1, 1)

    @torch.inference_mode()
    def run(self, context: int, decode: int, progress: object = None, seed: int = 0) -> Speed:
        reset_peak()
        ids_1T = torch.tensor([random_prompt(self._model.config.vocab_size, context, seed)])
        start = time.perf_counter()
        out = self._model(input_ids=ids_1T, use_cache=True, logits_to_keep=1)
        prefilled = time.perf_counter()
        for _ in range(decode):
            token_11 = out.logits[:, -1:].argmax(dim=-1)
            out = self._model(input_ids=token_11, past_key_values=out.past_key_values, use_cache=True)
        end = time.perf_counter()
        size = _cache_bytes(out.past_key_values)
        return Speed(
            self.name,
            self._dtype,
            context,
            context / (prefilled - start),
            decode / (end - prefilled),
            size,
            peak_bytes(),
        )


def _cache_bytes(cache: Any) -> int:
    """Bytes of all tensors a transformers cache holds, whatever its classes are called."""
    seen: set[int] = set()
    total, todo = 0, [cache]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            total += item.numel() * item.element_size()
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list | tuple):
            todo += item
        elif hasattr(item, "__dict__"):
            todo += vars(item).values()
    return total
