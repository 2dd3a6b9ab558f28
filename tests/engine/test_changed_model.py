"""The model that answers is the model in hand: whatever is done to it between two answers, the engine says what the
model itself says, and uses nothing it kept from before."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dsv4.cache.disk import DiskTier
from dsv4.engine import Engine
from dsv4.generation import Completion, FinishReason, SamplingParams, collect
from dsv4.kernels import native
from dsv4.model.attention.hca import HeavilyCompressedAttention
from dsv4.model.layers import RMSNorm
from dsv4.model.transformer import Transformer
from dsv4.model.watch import Watch, WeightWatch
from dsv4.testing.tiny import tiny_model

PROMPT = torch.randint(0, 97, (150,), generator=torch.Generator().manual_seed(3)).tolist()
PARAMS = SamplingParams(max_tokens=6, temperature=0, logprobs=True)


def make(model: Transformer, **options: Any) -> Engine:
    engine = Engine(model, context_length=512, sequences=2, step_tokens=64, **options)
    engine.ends = frozenset()
    return engine


@torch.inference_mode()
def by_the_model(model: Transformer, tokens: list[int]) -> Tensor:
    x_TSD = model.hidden(torch.tensor(tokens), model.pack([len(tokens)]))
    return model.logits(x_TSD).log_softmax(1)


def agrees(engine: Engine) -> Completion:
    """One answer, compared with the model run once over all of it."""
    said = collect(engine.generate(PROMPT, PARAMS))
    assert said.finish is FinishReason.LENGTH, said.error
    log_TV = by_the_model(engine.model, PROMPT + said.tokens)
    for i, (token, scores) in enumerate(zip(said.tokens, said.logprobs, strict=True)):
        assert scores.chosen == pytest.approx(float(log_TV[len(PROMPT) - 1 + i, token]), abs=1e-4)
    return said


def at(model: Transformer, path: str) -> Any:
    return model.get_submodule(path)


class Halved(HeavilyCompressedAttention):
    """A researcher's own attention."""

    def project(self, o_THC: Tensor) -> Tensor:
        return super().project(o_THC * 0.5)


class Wrapped(nn.Module):
    """Any module in place of an expert."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.limit, self.impl = inner, inner.limit, None

    def forward(self, *inputs: Any) -> Tensor:
        return self.inner(*inputs) * 2


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def hook(path: str, scale: float = 1.7) -> Callable[[Transformer], None]:
    return lambda m: at(m, path).register_forward_hook(lambda module, inputs, output: output * scale) and None


def pre_hook(path: str) -> Callable[[Transformer], None]:
    return lambda m: (
        at(m, path).register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.7, *inputs[1:])) and None
    )


def replaced(path: str) -> Callable[[Transformer], None]:
    def change(m: Transformer) -> None:
        owner, _, name = path.rpartition(".")
        old = getattr(at(m, owner), name)
        setattr(at(m, owner), name, nn.Parameter(old.detach() * 1.5 + 0.01, requires_grad=False))

    return change


def in_place(path: str, how: str) -> Callable[[Transformer], None]:
    def change(m: Transformer) -> None:
        weight = m.get_parameter(path)
        if how == "data":
            weight.data.mul_(1.5)
        elif how == "data=":
            weight.data = weight.data * 1.5
        elif how == "sliced":
            weight.data = weight.data.flip(0)
        else:
            with torch.no_grad() if how == "no_grad" else torch.inference_mode():
                weight.mul_(1.5)

    return change


def class_of(m: Transformer) -> None:
    at(m, "layers.3.attn").__class__ = Halved


def forward_of(m: Transformer) -> None:
    block = at(m, "layers.1")
    real = block.forward
    block.forward = lambda x_TSD, step: real(x_TSD, step) * 0.9


def method_of(m: Transformer) -> None:
    attn = at(m, "layers.2.attn")
    real = type(attn).project
    attn.project = types.MethodType(lambda self, o_THC: real(self, o_THC * 0.5), attn)


def deleted(m: Transformer) -> None:
    del m.layers[3]


def swapped(m: Transformer) -> None:
    m.layers[1], m.layers[2] = m.layers[2], m.layers[1]


def expert(kind: str) -> Callable[[Transformer], None]:
    def change(m: Transformer) -> None:
        experts = at(m, "layers.2.ffn.experts")
        experts[1] = Wrapped(experts[1]) if kind == "wrapped" else experts[0]

    return change


def setting(path: str, name: str, value: object) -> Callable[[Transformer], None]:
    return lambda m: setattr(at(m, path), name, value)


def rotary(m: Transformer) -> None:
    m.rotary.long_P = m.rotary.long_P * 0.5


def parametrized(m: Transformer) -> None:
    parametrize.register_parametrization(at(m, "layers.2.attn.wq_a"), "weight", Twice())


def table(m: Transformer) -> None:
    at(m, "layers.0.ffn.gate").tid2eid.copy_(at(m, "layers.0.ffn.gate").tid2eid.flip(0))


CHANGES: dict[str, Callable[[Transformer], None]] = {
    "class": class_of,
    "forward": forward_of,
    "method": method_of,
    "layer deleted": deleted,
    "layers swapped": swapped,
    "expert wrapped": expert("wrapped"),
    "expert shared": expert("shared"),
    "eps": setting("layers.1.attn_norm", "eps", 0.5),
    "limit": setting("layers.2.ffn.experts.1", "limit", 1e-3),
    "limit of all": lambda m: [setattr(x, "limit", 1e-3) for x in m.modules() if hasattr(x, "limit")] and None,
    "yarn": lambda m: m.use_yarn(False),
    "rotary": rotary,
    "parametrized": parametrized,
    "table": table,
    **{f"hook {path}": hook(path) for path in (
        "embed", "layers.2", "layers.1.attn", "layers.2.attn.wo_a", "layers.2.attn.compressor",
        "layers.2.ffn.experts.1", "layers.2.ffn.experts.0.w1", "layers.2.ffn.shared_experts", "layers.3.ffn", "norm",
        "head",
    )},
    **{f"pre-hook {path}": pre_hook(path) for path in ("layers.2.attn", "layers.1.ffn.shared_experts.w2")},
    **{f"replaced {path}": replaced(path) for path in (
        "embed.weight", "layers.2.attn.wkv.weight", "layers.2.attn.wo_a.weight", "layers.1.attn.attn_sink",
        "layers.1.hc_attn_fn", "layers.2.ffn.gate.weight", "layers.2.ffn.experts.1.w2.weight", "head.weight",
    )},
    **{f"{how} {path}": in_place(path, how) for how in ("no_grad", "inference_mode", "data", "data=", "sliced")
       for path in ("layers.2.attn.wq_b.weight", "layers.2.ffn.experts.1.w1.weight")},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_the_engine_says_what_the_changed_model_says(name: str) -> None:
    model = tiny_model()
    engine = make(model)
    first = agrees(engine)
    assert agrees(engine).reused == len(PROMPT) - 1
    before = by_the_model(model, PROMPT)
    CHANGES[name](model)
    changed = agrees(engine)
    assert changed.reused == 0
    assert not torch.equal(by_the_model(model, PROMPT), before), "the model itself must be another one"
    assert agrees(engine).tokens == changed.tokens
    assert first.tokens
    assert engine.check_integrity()


def test_a_hook_for_all_modules_is_called_and_gone_when_it_is_removed() -> None:
    model = tiny_model()
    engine, called = make(model), []
    agrees(engine)
    fused = engine.runner.fused
    assert fused is native.available()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *rest: called.append(module) and None)
    try:
        agrees(engine)
        experts = {m for m in called if any(m is e for e in model.layers[2].ffn.experts)}  # type: ignore[union-attr]
        assert experts
        assert not engine.runner.fused
    finally:
        handle.remove()
    called.clear()
    agrees(engine)
    assert not called
    assert engine.runner.fused is fused


def test_a_patched_class_is_run_as_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    engine = make(model)
    before = agrees(engine)
    real = RMSNorm.forward
    with monkeypatch.context() as patch:
        patch.setattr(RMSNorm, "forward", lambda self, x: real(self, x) * 1.3)
        assert agrees(engine).logprobs != before.logprobs
        assert not engine.runner.fused
    again = agrees(engine)
    assert again.logprobs == before.logprobs
    assert again.reused == 0


def test_hooks_may_do_another_thing_at_each_call_so_nothing_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    engine, strength = make(model), [1.0]
    handle = at(model, "layers.1").register_forward_hook(lambda module, inputs, output: output * strength[0])
    for strength[0] in (1.0, 0.5, 2.0):
        assert agrees(engine).reused == 0
    handle.remove()
    agrees(engine)
    assert agrees(engine).reused == len(PROMPT) - 1
    lines = capfd.readouterr().err
    assert lines.count('"steps": "op by op", "reason": "layers.1 has a hook"') == 1
    assert lines.count('"steps": "fused"') == int(native.available())


def test_a_change_in_the_middle_of_an_answer_is_followed_and_the_answer_not_kept() -> None:
    model = tiny_model()
    engine = make(model)
    events = engine.generate(PROMPT, PARAMS)
    next(events)
    CHANGES["no_grad layers.2.attn.wq_b.weight"](model)
    list(events)
    assert agrees(engine).reused == 0
    events = engine.generate(PROMPT[::-1], PARAMS)
    next(events)
    CHANGES["hook layers.2"](model)
    list(events)
    assert agrees(engine).reused == 0


AT_ONCE = ["class", "layer deleted", "layers swapped", "expert wrapped", "hook embed", "hook layers.2.ffn.experts.0.w1",
           "pre-hook layers.2.attn", "replaced layers.2.attn.wkv.weight", "eps", "rotary"]  # fmt: skip


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_is_done_through_a_module_counts_from_the_next_step(name: str) -> None:
    model = tiny_model()
    engine = make(model)
    events = engine.generate(PROMPT, PARAMS)
    next(events)
    noticed, real = [], engine.forget
    engine.forget = lambda: (noticed.append(True), real())[1]  # type: ignore[method-assign]
    CHANGES[name](model)
    next(events)
    assert noticed
    events.close()
    assert agrees(engine).reused == 0


def test_what_is_done_around_the_modules_counts_some_steps_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps_until(model: Transformer, change: Callable[[Transformer], None]) -> int:
        engine = make(model)
        list(engine.generate(PROMPT, PARAMS))
        change(model)
        return next(n for n in range(1000) if engine.runner.notice(thorough=False))

    assert steps_until(tiny_model(), CHANGES["data= layers.2.ffn.experts.1.w1.weight"]) <= 257
    assert steps_until(tiny_model(), lambda m: monkeypatch.setattr(RMSNorm, "forward", lambda self, x: x)) <= 257
    monkeypatch.undo()
    model = tiny_model()
    runner = make(model).runner
    assert not any(runner.notice(thorough=False) for _ in range(600))


def test_a_model_that_no_longer_fits_its_cache_says_so() -> None:
    model = tiny_model()
    engine = make(model)
    model.layers.append(model.layers[2])
    said = collect(engine.generate(PROMPT, PARAMS))
    assert said.finish is FinishReason.ERROR
    assert said.error is not None
    assert "layers.2.attn and layers.4.attn keep their rows in the same place" in said.error
    del model.layers[-1]
    agrees(engine)
    assert engine.check_integrity()


def test_prefixes_on_disk_belong_to_the_old_weights(tmp_path: Any) -> None:
    model = tiny_model()
    engine = make(model, disk=DiskTier(tmp_path, budget=2**28, fingerprint="a"))
    agrees(engine)
    CHANGES["data layers.2.attn.wq_b.weight"](model)
    changed = agrees(engine)
    assert changed.reused == 0
    engine.close()
    fresh = make(tiny_model(), disk=DiskTier(tmp_path, budget=2**28, fingerprint="a"))
    assert agrees(fresh).reused == len(PROMPT) - 1  # what was stored is of the old weights
    fresh.close()


def test_weights_without_a_version_counter_leave_nothing_to_reuse() -> None:
    model = tiny_model()
    with torch.inference_mode():
        at(model, "head").weight = nn.Parameter(at(model, "head").weight.clone(), requires_grad=False)
    engine = make(model)
    assert [agrees(engine).reused for _ in range(2)] == [0, 0]


def test_other_models_in_the_program_are_no_change() -> None:
    model = tiny_model()
    engine = make(model)
    agrees(engine)
    tiny_model()
    assert agrees(engine).reused == len(PROMPT) - 1


def test_a_watch_finds_everything_changed_until_it_has_looked() -> None:
    model, watch = tiny_model(), Watch()
    assert watch.changed()
    watch.look(model)
    assert not watch.changed()
    weights = WeightWatch(model)
    assert not weights.changed()
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    assert weights.changed()
    assert not weights.changed()
    assert not watch.changed()
