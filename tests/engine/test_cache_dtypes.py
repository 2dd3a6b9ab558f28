"""How rows are stored: lossless where it must be, small where asked, and the same in every order of work."""

import pytest
import torch
from torch import Tensor

from dsv4.cache import CacheDtype
from dsv4.engine import Engine
from dsv4.generation import SamplingParams
from dsv4.kernels import native
from dsv4.model.init import init_weights
from dsv4.model.layers import BF16, FP32, RELEASE, Numerics
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config

PROMPT = [(7 * n) % 97 for n in range(270)]


def model_in(numerics: Numerics) -> Transformer:
    torch.manual_seed(11)
    model = Transformer(tiny_config(), numerics)
    init_weights(model)
    return model.requires_grad_(False).eval()


def logits_of(model: Transformer, dtype: CacheDtype | None, chunk: int) -> Tensor:
    """The logits that a prompt and its greedy answer are sampled from."""
    engine = Engine(model, context_length=512, sequences=1, step_tokens=chunk, cache_dtype=dtype)
    engine.ends = frozenset()
    rows: list[Tensor] = []
    real = engine._sample
    engine._sample = lambda *given: (rows.append(given[1].clone()), real(*given))[1]  # type: ignore
    list(engine.generate(PROMPT, SamplingParams(max_tokens=8, temperature=0)))
    return torch.stack(rows)


def test_the_default_is_how_the_model_computes() -> None:
    for numerics, dtype in ((FP32, "fp32"), (BF16, "bf16"), (RELEASE, "release")):
        assert Engine(model_in(numerics), context_length=64).cache.store.spec.dtype == dtype


@pytest.mark.skipif(not native.available(), reason="bit for bit on native kernels only")
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_packed_rows_are_lossless_in_release_numerics(dtype: CacheDtype) -> None:
    model = model_in(RELEASE)
    assert torch.equal(logits_of(model, "release", 300), logits_of(model, dtype, 300))


@pytest.mark.skipif(not native.available(), reason="bit for bit on native kernels only")
@pytest.mark.parametrize("dtype", ["release", "bf16"])
def test_rounded_rows_give_the_same_bits_in_any_chunks(dtype: CacheDtype) -> None:
    """A row is read as it is stored also in the step that writes it."""
    model = model_in(FP32)
    whole, exact = logits_of(model, dtype, 300), logits_of(model, "fp32", 300)
    assert torch.equal(whole, logits_of(model, dtype, 7))
    difference = float((whole - exact).abs().max())
    assert 0 < difference < 0.5 * float(exact.std())


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="cache dtype must be one of fp32, bf16, release, got 'fp8'"):
        Engine(model_in(FP32), context_length=64, cache_dtype="fp8")  # type: ignore[arg-type]
