"""The MoE layer: tables choose, learned scores weigh, the observer hears every layer (report 2.1)."""

import pytest
import torch
from torch import Tensor

from dsv4.model.inputs import FreshCache
from dsv4.model.moe import MoE
from dsv4.model.rope import RotaryTables
from dsv4.model.step import Step
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_model

HASH, LEARNED = 0, 1
TOKENS = 12


@pytest.fixture
def model() -> Transformer:
    return tiny_model()


def moe_of(model: Transformer, layer: int) -> MoE:
    return model.layers[layer].ffn  # type: ignore[return-value]


def step_of(model: Transformer, tokens_T: Tensor) -> Step:
    sequences = model.pack([len(tokens_T)])
    cache = FreshCache(sequences, model.config.sliding_window)
    return Step(tokens_T, sequences, RotaryTables(model.config).step(sequences), cache)


def affinity(moe: MoE, x_TD: Tensor) -> Tensor:
    return torch.log1p((x_TD.double() @ moe.gate.weight.double().T).exp()).sqrt()


def swiglu(expert: torch.nn.Module, x_D: Tensor, limit: float) -> Tensor:
    gate, up = (getattr(expert, name).weight.double() @ x_D for name in ("w1", "w3"))
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return expert.w2.weight.double() @ (gate * gate.sigmoid() * up)  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("layer", [HASH, LEARNED])
def test_the_layer_equals_the_loop(model: Transformer, layer: int) -> None:
    moe, c = moe_of(model, layer), model.config
    tokens_T, x_TD = torch.randint(0, c.vocab_size, (TOKENS,)), torch.randn(TOKENS, c.hidden_size)
    score_TE = affinity(moe, x_TD)
    wanted = []
    for t, x_D in enumerate(x_TD.double()):
        if layer == HASH:
            ids = moe.gate.tid2eid[tokens_T[t]].tolist()
        else:
            ids = (score_TE[t] + moe.gate.bias).topk(c.num_experts_per_tok).indices.tolist()
        total = sum(float(score_TE[t, e]) for e in ids)
        y_D = swiglu(moe.shared_experts, x_D, c.swiglu_limit)
        for e in ids:
            weight = float(score_TE[t, e]) / total * c.routed_scaling_factor
            y_D = y_D + weight * swiglu(moe.experts[e], x_D, c.swiglu_limit)
        wanted.append(y_D)
    out = moe(x_TD, step_of(model, tokens_T))
    torch.testing.assert_close(out.double(), torch.stack(wanted), atol=1e-5, rtol=0)


@torch.no_grad()
def test_hash_layers_choose_by_the_token_and_weigh_by_the_learned_gate(model: Transformer) -> None:
    gate = moe_of(model, HASH).gate
    tokens_T = torch.tensor([5, 5, 9])
    x_TD = torch.randn(3, model.config.hidden_size)
    _, ids, weight = gate(x_TD, tokens_T)
    assert torch.equal(ids, gate.tid2eid[tokens_T])
    assert gate.bias is None
    assert not torch.allclose(weight[0], weight[1])  # same experts, other weights
    gate.tid2eid[5] = torch.tensor([7, 2])
    assert gate(x_TD, tokens_T)[1].tolist()[:2] == [[7, 2], [7, 2]]
    gate.weight.mul_(-1)
    assert torch.equal(gate(x_TD, tokens_T)[1], gate.tid2eid[tokens_T])


@torch.no_grad()
def test_learned_layers_do_not_look_at_the_token(model: Transformer) -> None:
    gate = moe_of(model, LEARNED).gate
    x_TD = torch.randn(3, model.config.hidden_size)
    one, other = (gate(x_TD, torch.full((3,), token)) for token in (5, 9))
    assert gate.tid2eid is None
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_the_bias_gets_no_gradient_and_the_gate_does(model: Transformer) -> None:
    moe = moe_of(model, LEARNED)
    x_TD = torch.randn(TOKENS, model.config.hidden_size)
    moe(x_TD, step_of(model, torch.zeros(TOKENS, dtype=torch.int64))).square().sum().backward()
    assert moe.gate.bias.requires_grad is False
    assert moe.gate.bias.grad is None
    assert moe.gate.weight.grad.abs().max() > 0


def test_the_observer_hears_every_moe_layer_once(model: Transformer) -> None:
    heard: dict[int, tuple[Tensor, Tensor]] = {}

    class Listener:
        def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
            assert layer not in heard
            heard[layer] = (score_TE, ids_TK)

    tokens_T = torch.randint(0, model.config.vocab_size, (TOKENS,))
    sequences = model.pack([TOKENS])
    x_TSD = model.hidden(tokens_T, sequences, observer=Listener())
    assert sorted(heard) == [0, 1, 2, 3]
    model.mtp_hidden(x_TSD, tokens_T, sequences, observer=Listener())
    assert sorted(heard) == [0, 1, 2, 3, 4]
    for score_TE, ids_TK in heard.values():
        assert score_TE.shape == (TOKENS, model.config.n_routed_experts)
        assert score_TE.requires_grad
        assert ids_TK.shape == (TOKENS, model.config.num_experts_per_tok)
