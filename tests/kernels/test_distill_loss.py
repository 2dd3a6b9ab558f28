"""The divergences of distillation: values and gradients against float64 sums over the whole vocabulary (report 5.1.2,
equation 29), chunks, weights, and the bias of a sum over a few ids."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dsv4.kernels import vocab_loss as vocab
from dsv4.kernels.distill_loss import Divergence, distill_loss
from dsv4.testing.graph import graph_is_freed

IMPLEMENTATIONS = ["torch", "reference"]
DIM, TEACHER_DIM, VOCAB = 6, 4, 13
DIVERGENCES = {
    "reverse": Divergence(),
    "forward": Divergence("forward"),
    "jsd": Divergence("jsd", beta=0.3),
    "top-k": Divergence(top_k=4),
    "top-k, not detached": Divergence(top_k=4, detached=False),
}
each = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def random_inputs(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's rows and head, teacher's rows and head of another width."""
    student = torch.randn(rows, DIM, dtype=dtype), torch.randn(VOCAB, DIM, dtype=dtype)
    teacher = torch.randn(rows, TEACHER_DIM, dtype=dtype), torch.randn(VOCAB, TEACHER_DIM, dtype=dtype)
    return student[0].requires_grad_(), student[1].requires_grad_(), *teacher


def sum_over_ids(p: Tensor, q: Tensor) -> Tensor:
    return sum((a * (a / b).log() for a, b in zip(p, q, strict=True)), torch.zeros((), dtype=p.dtype))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("rows", "chunk"), [(1, 4), (8, 4), (9, 4), (7, 100), (5, None)])
def test_reverse_kl_and_its_gradient_are_those_of_float64(impl: str, rows: int, chunk: int | None) -> None:
    """The sum and p_v (log(p_v / q_v) - KL) as the report has them, id by id."""
    inputs = random_inputs(rows)
    x, weight, teacher, head = (t.detach().double() for t in inputs)
    p, q = (x @ weight.T).softmax(1), (teacher @ head.T).softmax(1)
    wanted = torch.tensor(
        [sum(a * (a / b).log() for a, b in zip(u, v, strict=True)) for u, v in zip(p, q, strict=True)]
    )
    grad_logits = p * ((p / q).log() - wanted[:, None]) / rows
    out = distill_loss(*inputs, chunk=chunk, impl=impl)
    torch.testing.assert_close(out.divergence_T.double(), wanted, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(out.loss.double(), wanted.mean(), atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(out.entropy_T.double(), -(p * p.log()).sum(1), atol=2e-6, rtol=2e-6)
    grads = torch.autograd.grad(out.loss, inputs[:2])
    torch.testing.assert_close(grads[0].double(), grad_logits @ weight, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(grads[1].double(), grad_logits.T @ x, atol=2e-6, rtol=1e-5)
    assert not out.divergence_T.requires_grad


@each
@pytest.mark.parametrize("chunk", [2, None])
def test_both_implementations_agree_with_finite_differences(divergence: Divergence, chunk: int | None) -> None:
    x, weight, teacher, head = random_inputs(5, torch.float64)
    rows = torch.rand(5, dtype=torch.float64)

    def loss(a: Tensor, b: Tensor, impl: str = "torch") -> Tensor:
        return distill_loss(a, b, teacher, head, rows, divergence=divergence, chunk=chunk, impl=impl).loss

    results = [(value := loss(x, weight, impl), *torch.autograd.grad(value, [x, weight])) for impl in IMPLEMENTATIONS]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)
    if not (divergence.top_k and divergence.detached):  # what is detached is not the derivative of the value
        assert torch.autograd.gradcheck(loss, [x, weight])


def test_jsd_turns_into_both_kl_divergences_at_its_ends() -> None:
    inputs = random_inputs(4, torch.float64)
    for beta, kind, factor in ((1e-6, "forward", 1e-6), (1 - 1e-6, "reverse", 1e-6)):
        between = distill_loss(*inputs, divergence=Divergence("jsd", beta=beta)).divergence_T / factor
        wanted = distill_loss(*inputs, divergence=Divergence(kind)).divergence_T  # type: ignore[arg-type]
        torch.testing.assert_close(between, wanted, atol=1e-3, rtol=5e-3)


def test_a_sum_over_a_few_ids_lowers_their_mass_unless_it_is_detached() -> None:
    """A student that is the teacher has nothing to learn. The truncated sum as it stands still pushes the likeliest ids
    down; with the ratio detached nothing moves."""
    x, weight, _, _ = random_inputs(6, torch.float64)
    same = x.detach().clone(), weight.detach().clone()

    def slope_of_mass(detached: bool) -> Tensor:
        """How the mass of the likeliest ids changes in a small step against the gradient."""
        loss = distill_loss(x, weight, *same, divergence=Divergence(top_k=3, detached=detached)).loss
        (grad,) = torch.autograd.grad(loss, x)
        before = (x @ weight.T).softmax(1)
        ids = before.topk(3, dim=1).indices
        after = ((x - 1e-3 * grad) @ weight.T).softmax(1)
        return (after - before).gather(1, ids).sum(1).detach()

    assert bool((slope_of_mass(detached=False) < -1e-8).all())
    assert float(slope_of_mass(detached=True).abs().max()) < 1e-12


def test_top_k_of_the_whole_vocabulary_is_all_of_it() -> None:
    inputs = random_inputs(5, torch.float64)
    whole = distill_loss(*inputs)
    for detached in (True, False):
        some = distill_loss(*inputs, divergence=Divergence(top_k=100, detached=detached))
        torch.testing.assert_close(some.divergence_T, whole.divergence_T)
        grads = [torch.autograd.grad(out.loss, inputs[0], retain_graph=True)[0] for out in (some, whole)]
        torch.testing.assert_close(grads[0], grads[1])


@each
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ids_that_are_left_out_count_nowhere(divergence: Divergence, impl: str) -> None:
    x, weight, teacher, head = random_inputs(5, torch.float64)
    kept = [i for i in range(VOCAB) if i not in (2, 7)]
    other = head.clone()
    other[[2, 7]] += 50
    for one in (head, other):
        out = distill_loss(x, weight, teacher, one, divergence=divergence, without=(2, 7), impl=impl)
        wanted = distill_loss(x, weight[kept], teacher, head[kept], divergence=divergence, impl=impl)
        torch.testing.assert_close(out.divergence_T, wanted.divergence_T)
        (grad,) = torch.autograd.grad(out.loss, weight, retain_graph=True)
        assert grad[[2, 7]].abs().max() == 0
        assert grad.abs().max() > 0


@each
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_weights_and_total(divergence: Divergence, impl: str) -> None:
    inputs = random_inputs(6, torch.float64)
    rows = torch.tensor([0.0, 1, 2, 0.5, 0, 1], dtype=torch.float64)
    value = distill_loss(*inputs, divergence=divergence, impl=impl).divergence_T
    for total, wanted in ((None, (value * rows).sum() / rows.sum()), (1.0, (value * rows).sum())):
        got = distill_loss(*inputs, rows, divergence=divergence, total=total, chunk=4, impl=impl).loss
        torch.testing.assert_close(got.detach(), wanted)
    empty = distill_loss(inputs[0][:0], inputs[1], inputs[2][:0], inputs[3], impl=impl)
    assert empty.loss.item() == 0


def test_far_away_teachers_stay_finite() -> None:
    """Probabilities that float32 cannot hold: log q of -2,000 is a number, q is 0."""
    x, weight, teacher, head = random_inputs(3)
    for divergence in DIVERGENCES.values():
        out = distill_loss(x * 1000, weight, -1000 * teacher, head, divergence=divergence)
        grads = torch.autograd.grad(out.loss, [x, weight])
        assert out.loss.isfinite()
        assert all(bool(g.isfinite().all()) for g in grads)


def test_bfloat16_rows_and_weights_keep_their_dtype() -> None:
    inputs = [t.detach().bfloat16() for t in random_inputs(9)]
    x, weight = inputs[0].requires_grad_(), inputs[1].requires_grad_()
    out = distill_loss(x, weight, *inputs[2:], chunk=4)
    assert out.loss.dtype == torch.float32
    grads = torch.autograd.grad(out.loss, [x, weight])
    assert [g.dtype for g in grads] == [torch.bfloat16] * 2
    wide = distill_loss(*(t.float() for t in inputs)).loss
    torch.testing.assert_close(out.loss, wide, atol=1e-5, rtol=0)


def test_no_chunk_of_logits_is_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.mm.default, torch.ops.aten._log_softmax.default) and result.shape[1] == VOCAB:
                seen.append(result.numel())
            return result

    monkeypatch.setattr(vocab, "CHUNK_LOGITS", 6 * VOCAB)
    inputs = random_inputs(10)
    with Watch():
        distill_loss(*inputs).loss.backward()
    assert max(seen) == 3 * VOCAB  # of the student, and as many of the teacher
    assert inputs[0].grad is not None


def test_the_graph_is_freed() -> None:
    def run(mark: object) -> None:
        x, weight, teacher, head = random_inputs(4)
        distill_loss(mark(x), weight, teacher, head).loss.backward()  # type: ignore[operator]

    assert graph_is_freed(run)


def test_wrong_shapes_and_settings_are_named() -> None:
    x, weight, teacher, head = random_inputs(4)
    with pytest.raises(ValueError, match="the student has 13 ids, the teacher 12"):
        distill_loss(x, weight, teacher, head[1:])
    with pytest.raises(ValueError, match="the student has 4 rows, the teacher 3"):
        distill_loss(x, weight, teacher[1:], head)
    with pytest.raises(ValueError, match="the teacher's rows have 6 columns, its head 4"):
        distill_loss(x, weight, x, head)
    with pytest.raises(ValueError, match=r"row_weight_T must have shape \[4\], got \[3\]"):
        distill_loss(x, weight, teacher, head, torch.ones(3))
    with pytest.raises(ValueError, match="distill_loss: chunk must be at least 1, got 0"):
        distill_loss(x, weight, teacher, head, chunk=0)
    with pytest.raises(ValueError, match="kind must be reverse, forward or jsd"):
        Divergence("other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta must lie between 0 and 1"):
        Divergence("jsd", beta=1.0)
    with pytest.raises(ValueError, match="top_k must be at least 0, and 0 unless kind is reverse, got 5"):
        Divergence("forward", top_k=5)
