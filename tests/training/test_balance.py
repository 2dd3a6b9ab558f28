"""Balancing experts: the bias rule, V3's sequence loss written out, MaxVio (report 2.1)."""

import pytest
import torch

from dsv4.testing.tiny import tiny_model
from dsv4.training.balance import add_load, expert_load, max_violation, move_biases, sequence_balance


def test_load_and_violation() -> None:
    ids = torch.tensor([[0, 1], [0, 2], [0, 1], [0, 3]])
    load = expert_load(ids, 5)
    assert load.tolist() == [4, 2, 1, 1, 0]
    assert max_violation(load) == pytest.approx(4 / 1.6 - 1)
    assert max_violation(torch.ones(7)) == 0
    total = {1: load.clone()}
    add_load(total, {1: load, 2: load})
    assert total[1].tolist() == [8, 4, 2, 2, 0]
    assert total[2].tolist() == load.tolist()


def test_biases_move_by_the_sign() -> None:
    model = tiny_model()
    gate = model.layers[1].ffn.gate
    before, table = gate.bias.clone(), model.layers[0].ffn.gate
    load = torch.tensor([8.0, 0, 4, 4, 2, 6, 4, 4])
    move_biases(model, {0: load, 1: load, 4: 2 * load}, speed=0.01)
    wanted = before + 0.01 * torch.tensor([-1.0, 1, 0, 0, 1, -1, 0, 0])
    torch.testing.assert_close(gate.bias, wanted)
    assert table.bias is None
    assert not torch.equal(model.mtp[0].ffn.gate.bias, torch.zeros(8))


def test_the_rule_evens_out_a_lopsided_router() -> None:
    scores = torch.rand(400, 8) + torch.linspace(0, 0.5, 8)
    bias, violations = torch.zeros(8), []
    model = tiny_model()
    gate = model.layers[1].ffn.gate
    gate.bias.data.zero_()
    for _ in range(60):
        ids = (scores + gate.bias).topk(2).indices
        load = expert_load(ids, 8)
        violations.append(max_violation(load))
        move_biases(model, {1: load}, speed=0.01)
    assert bias.sum() == 0
    assert violations[-1] < 0.2 * violations[0]


def test_sequence_loss_is_v3s_formula_per_document() -> None:
    lengths, experts, k = [5, 1, 9], 6, 2
    score = torch.rand(15, experts, dtype=torch.float64)
    ids = (score + torch.randn(experts)).topk(k).indices
    sequence = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    wanted, at = 0.0, 0
    for length in lengths:
        for e in range(experts):
            chosen = sum(int(e in ids[t].tolist()) for t in range(at, at + length))
            f = experts / (k * length) * chosen
            p = sum(float(score[t, e] / score[t].sum()) for t in range(at, at + length)) / length
            wanted += length * f * p
        at += length
    assert float(sequence_balance(score, ids, sequence, 3)) == pytest.approx(wanted)


def test_even_load_and_affinity_cost_one_per_token_and_the_gradient_flows() -> None:
    ids = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    score = torch.ones(4, 4, dtype=torch.float64, requires_grad=True)
    value = sequence_balance(score, ids, torch.zeros(4, dtype=torch.int64), 1)
    assert value.item() == pytest.approx(4)
    uneven = torch.tensor([[0, 1], [0, 2], [0, 1], [0, 3]])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return sequence_balance(x, uneven, torch.tensor([0, 0, 1, 1]), 2)

    assert torch.autograd.gradcheck(loss, [torch.rand(4, 4, dtype=torch.float64, requires_grad=True)])
    (grad,) = torch.autograd.grad(loss(score), score)
    assert bool((grad[:, 0] > 0).all())  # the crowded expert's affinity goes down
