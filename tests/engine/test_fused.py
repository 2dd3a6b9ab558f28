"""The fused step against the model run op by op with the native kernels: the same bits, in logits and in the cache."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4.cache import CacheDtype
from dsv4.cache.prefix import ReusePolicy, Windows
from dsv4.checkpoint import CheckpointReader, load_into
from dsv4.config import ModelConfig
from dsv4.engine import Engine
from dsv4.engine.request import Request
from dsv4.engine.runner import Runner
from dsv4.generation import RequestOptions, SamplingParams
from dsv4.kernels import native
from dsv4.model.layers import FP32, MODES, Numerics
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.why_not()}")
NANO = ROOT / "models" / "nano"
NUMERICS = {
    "fp32": FP32,
    "fp32 simulated": Numerics(torch.float32, simulate=True),
    "bf16": Numerics(torch.bfloat16),
    "release": Numerics(torch.bfloat16, simulate=True),
}
CACHES: tuple[CacheDtype, ...] = ("fp32", "bf16", "release")


@cache
def tiny(name: str) -> Transformer:
    return tiny_model(numerics=NUMERICS[name])


def quantised(mode: Any) -> Transformer:
    """models/nano: fp8 and fp4 weights."""
    config = ModelConfig.from_file(NANO)
    with torch.device("meta"):
        model = Transformer(config, MODES[mode])
    load_into(model, config, CheckpointReader(NANO), mode)
    return model.requires_grad_(False).eval()


class Recorder:
    """An engine on rows that hold NaN wherever nothing was written, and the logits it sampled from."""

    def __init__(self, model: Transformer, fused: bool, **options: Any) -> None:
        settings: dict[str, Any] = {"context_length": 1024, "sequences": 3, "step_tokens": 50} | options
        self.logits: dict[int, list[Tensor]] = {}
        self.engine = Engine(model, fused=fused, observer=self._sampled_from, **settings)
        self.engine.ends = frozenset()
        assert self.engine.runner.fused == fused
        for tensor in self.rows():
            tensor.fill_(255 if tensor.dtype == torch.uint8 else float("nan"))

    def _sampled_from(self, request: Request, logits_V: Tensor) -> None:
        self.logits.setdefault(request.number, []).append(logits_V.clone())

    def rows(self) -> list[Tensor]:
        layers = self.engine.cache.store.layers
        return [t for layer in layers for t in (*layer.slot_tensors(), *layer.page_tensors())]

    def submit(self, length: int, answer: int, seed: int, **options: Any) -> None:
        own = torch.Generator().manual_seed(seed)
        prompt = torch.randint(0, self.engine.model.config.vocab_size, (length,), generator=own).tolist()
        params = SamplingParams(max_tokens=answer, temperature=0.8, seed=seed)
        self.engine.submit(prompt, params, RequestOptions(**options))

    def run(self, lengths: list[int], answer: int = 6) -> "Recorder":
        for seed, length in enumerate(lengths):
            self.submit(length, answer, seed)
        while self.engine.busy:
            self.engine.step()
        return self


def same(a: Recorder, b: Recorder) -> None:
    assert a.logits.keys() == b.logits.keys()
    for number, rows in a.logits.items():
        assert torch.equal(torch.stack(rows), torch.stack(b.logits[number]))
        assert torch.stack(rows).isfinite().all()
    for x, y in zip(a.rows(), b.rows(), strict=True):
        assert torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize("name", NUMERICS)
def test_streams_of_all_lengths(name: str, cache_dtype: CacheDtype) -> None:
    """Chunked prompts beside decoding ones, across borders of blocks, windows and pages, with drafts."""
    lengths = [1, 3, 4, 5, 127, 128, 129, 131, 255, 256, 257, 300]
    plain, fused = (Recorder(tiny(name), f, cache_dtype=cache_dtype, speculate=True) for f in (False, True))
    same(plain.run(lengths), fused.run(lengths))
    assert fused.engine.counts.drafted > 0


@pytest.mark.parametrize("step_tokens", [1, 7, 700])
def test_chunks(step_tokens: int) -> None:
    plain = Recorder(tiny("fp32"), False, step_tokens=512).run([261, 3], 140)
    fused = Recorder(tiny("fp32"), True, step_tokens=step_tokens).run([261, 3], 140)
    for number, rows in plain.logits.items():
        assert torch.equal(torch.stack(rows), torch.stack(fused.logits[number]))


@pytest.mark.parametrize("windows", ["periodic", "none"])
def test_reused_prefixes(windows: Windows) -> None:
    """Windows warmed up again write no entry twice."""
    runs = [
        Recorder(tiny("fp32"), f, step_tokens=256, reuse=ReusePolicy(windows, 256, 60), context_length=2048)
        for f in (False, True)
    ]
    for recorder in runs:
        for _ in range(2):
            recorder.submit(1100, 5, seed=0)
            while recorder.engine.busy:
                recorder.engine.step()
    same(*runs)
    assert runs[1].engine.counts.reused_tokens > 0


def test_other_shapes() -> None:
    """HCA of another ratio, one group, odd numbers of heads and experts, a short window, no prediction block."""
    config = tiny_config(
        num_nextn_predict_layers=0,
        compress_ratios=(4, 16, 0, 64),
        num_attention_heads=3,
        o_groups=1,
        head_dim=40,
        hidden_size=72,
        sliding_window=16,
        index_topk=3,
        n_routed_experts=5,
        num_experts_per_tok=3,
        moe_intermediate_size=40,
        hc_mult=3,
        num_hash_layers=2,
    )
    model = tiny_model(config)
    same(*(Recorder(model, fused).run([1, 15, 16, 17, 63, 64, 65, 260], 20) for fused in (False, True)))


@pytest.mark.parametrize("mode", ["fp32", "release"])
def test_quantised_weights(mode: str) -> None:
    model = quantised(mode)
    lengths = [2, 130, 530]  # more entries than the indexer keeps
    same(*(Recorder(model, f, speculate=True, step_tokens=200).run(lengths) for f in (False, True)))


def test_threads_change_no_bit() -> None:
    """A prompt long enough that its pieces are shared out, unless the machine is busy."""
    model, before, runs = quantised("fp32"), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(Recorder(model, True, step_tokens=700).run([700], 3))
    finally:
        torch.set_num_threads(before)
    same(*runs)


def test_changed_weights_are_seen() -> None:
    """In place, and replaced by other memory."""
    model = tiny_model()
    fused = Recorder(model, True)
    fused.run([9])
    for in_place in (True, False):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data = parameter.data.mul_(1.25) if in_place else parameter.data * 0.75
        fused.engine.forget()
        fused.run([9])
        plain = Recorder(model, False).run([9])
        last = fused.engine.counts.requests - 1
        assert torch.equal(torch.stack(fused.logits[last]), torch.stack(plain.logits[0]))


def test_what_cannot_be_fused_says_why() -> None:
    model = tiny_model(impl="torch")
    store = Engine(model, context_length=64).cache.store
    with pytest.raises(ValueError, match="cannot be fused: the model: it runs on 'torch' kernels"):
        Runner(model, store, predict=False, fused=True)
    assert not Runner(model, store, predict=False).fused
    assert not Runner(tiny("fp32"), store, predict=False, fused=False).fused
    odd = tiny_model()
    odd.head.weight.data = odd.head.weight.data.to(torch.float16)
    with pytest.raises(ValueError, match="head must be float32"):
        Runner(odd, store, predict=False, fused=True)
