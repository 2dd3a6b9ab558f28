"""The vocabulary loss: values and gradients of cross entropy, weights, chunks, and memory (report 4.3)."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dsv4.kernels import vocab_loss as kernel
from dsv4.kernels.vocab_loss import row_logprobs, vocab_loss
from dsv4.testing.graph import graph_is_freed

IMPLEMENTATIONS = ["torch", "reference"]
DIM, VOCAB = 6, 11


def random_inputs(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = torch.randn(rows, DIM, dtype=dtype), torch.randn(VOCAB, DIM, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_(), torch.randint(0, VOCAB, (rows,))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("rows", "chunk"), [(1, 4), (8, 4), (9, 4), (7, 100), (5, None)])
def test_value_and_gradients_are_those_of_cross_entropy(impl: str, rows: int, chunk: int | None) -> None:
    x, weight, target = random_inputs(rows)
    wanted = F.cross_entropy(x @ weight.T, target)
    grads = torch.autograd.grad(wanted * 3, [x, weight])
    out = vocab_loss(x, weight, target, chunk=chunk, impl=impl)
    torch.testing.assert_close(out.loss, wanted, atol=1e-6, rtol=1e-6)
    for got, grad in zip(torch.autograd.grad(out.loss * 3, [x, weight]), grads, strict=True):
        torch.testing.assert_close(got, grad, atol=1e-6, rtol=1e-5)
    logits = x @ weight.T
    torch.testing.assert_close(out.loss_T, F.cross_entropy(logits, target, reduction="none"), atol=2e-6, rtol=0)
    assert torch.equal(out.correct_T, logits.argmax(1) == target)
    assert not out.loss_T.requires_grad


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_weights_and_total(impl: str) -> None:
    x, weight, target = random_inputs(10)
    rows = torch.tensor([0.0, 1, 2, 0.5, 0, 1, 0, 0, 3, 1])
    loss = F.cross_entropy(x @ weight.T, target, reduction="none") * rows
    for total, wanted in ((None, loss.sum() / rows.sum()), (1, loss.sum()), (40.0, loss.sum() / 40)):
        got = vocab_loss(x, weight, target, rows, total=total, chunk=3, impl=impl).loss
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
    mask = rows > 0
    got = vocab_loss(x, weight, target, mask, impl=impl).loss
    torch.testing.assert_close(got, F.cross_entropy((x @ weight.T)[mask], target[mask]), atol=1e-6, rtol=1e-6)
    (grad,) = torch.autograd.grad(got, x)
    assert torch.equal(grad[~mask], torch.zeros(4, DIM))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_rows_of_no_weight_may_hold_anything_and_nothing_to_learn_costs_nothing(impl: str) -> None:
    x, weight, target = random_inputs(3)
    none = vocab_loss(x, weight, target, torch.zeros(3), impl=impl).loss
    assert none.item() == 0
    assert torch.autograd.grad(none, weight)[0].abs().max() == 0
    empty = vocab_loss(x[:0], weight, target[:0], impl=impl)
    assert empty.loss.item() == 0
    assert empty.loss_T.shape == empty.correct_T.shape == (0,)


@pytest.mark.parametrize("chunk", [2, 5, None])
def test_gradcheck(chunk: int | None) -> None:
    x, weight, target = random_inputs(5, torch.float64)
    rows = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: vocab_loss(a, b, target, rows, chunk=chunk).loss, [x, weight])
    assert torch.autograd.gradcheck(lambda a, b: row_logprobs(a, b, target, chunk=chunk).logprob_T, [x, weight])
    kept = random_kept(5, target)
    assert torch.autograd.gradcheck(lambda a, b: row_logprobs(a, b, target, kept, chunk=chunk).logprob_T, [x, weight])


def random_kept(rows: int, target: Tensor) -> Tensor:
    """Sets of several sizes around the targets; the last row keeps all."""
    kept = torch.full((rows, 5), -1)
    for row in range(rows - 1):
        others = torch.randperm(VOCAB)[: row % 4]
        ids = torch.cat([target[row : row + 1], others[others != target[row]]])
        kept[row, : len(ids)] = ids
    return kept


@pytest.mark.parametrize("cut", [False, True])
def test_row_logprobs_carry_a_gradient_each(cut: bool) -> None:
    x, weight, target = random_inputs(7)
    kept = random_kept(7, target) if cut else None
    results = []
    for impl in IMPLEMENTATIONS:
        out = row_logprobs(x, weight, target, kept, chunk=3, impl=impl)
        grads = torch.autograd.grad((out.logprob_T.square() * torch.arange(7)).sum(), [x, weight])
        assert not out.entropy_T.requires_grad
        results.append([out.logprob_T, out.entropy_T, *grads])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_row_logprobs_are_those_among_the_kept_ids() -> None:
    x, weight, target = random_inputs(4)
    logits = (x @ weight.T).detach()
    kept = torch.tensor([[3, 5, -1], [2, -1, -1], [-1, -1, -1], [1, 4, 7]])
    target = torch.tensor([5, 2, 9, 0])
    out = row_logprobs(x, weight, target, kept)
    log, among = out.logprob_T.detach(), logits[0, [3, 5]].log_softmax(0)
    assert float(log[0]) == pytest.approx(float(among[1]), abs=1e-6)
    assert float(out.entropy_T[0]) == pytest.approx(float(-(among.exp() * among).sum()), abs=1e-6)
    assert float(log[1]) == float(out.entropy_T[1]) == 0  # one id: nothing was chosen
    assert float(log[2]) == pytest.approx(float(logits[2].log_softmax(0)[9]), abs=1e-6)
    assert float(log[3]) == float("-inf")
    (grad,) = torch.autograd.grad(out.logprob_T.sum(), x)
    assert grad[1].abs().max() == grad[3].abs().max() == 0
    assert grad[0].abs().max() > 0


def test_bfloat16_rows_and_weights_keep_their_dtype() -> None:
    x, weight, target = (t.detach() for t in random_inputs(9))
    x, weight = x.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    out = vocab_loss(x, weight, target, chunk=4)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, F.cross_entropy(x.float() @ weight.float().T, target), atol=1e-5, rtol=0)
    out.loss.backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_only_what_is_asked_for_is_computed() -> None:
    x, weight, target = random_inputs(4)
    frozen = vocab_loss(x, weight.detach(), target)
    frozen.loss.backward()
    assert x.grad is not None
    assert not vocab_loss(x.detach(), weight.detach(), target).loss.requires_grad


def test_no_chunk_of_logits_is_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and result.shape[1] == VOCAB:
                seen.append(result.numel())
            return result

    monkeypatch.setattr(kernel, "CHUNK_LOGITS", 3 * VOCAB)
    x, weight, target = random_inputs(10)
    with Watch():
        vocab_loss(x, weight, target).loss.backward()
        row_logprobs(x, weight, target).logprob_T.sum().backward()
    assert max(seen) == 3 * VOCAB
    # once for the loss; for rows in the backward pass, and in the forward pass where it is not native
    assert sum(seen) in (2 * 10 * VOCAB, 3 * 10 * VOCAB)


def test_the_graph_is_freed() -> None:
    def run(mark: object) -> None:
        x, weight, target = random_inputs(4)
        vocab_loss(mark(x), weight, target).loss.backward()  # type: ignore[operator]

    assert graph_is_freed(run)


def test_wrong_shapes_are_named() -> None:
    x, weight, target = random_inputs(4)
    with pytest.raises(ValueError, match=r"target_T must have shape \[4\], got \[3\]"):
        vocab_loss(x, weight, target[:3])
    with pytest.raises(ValueError, match="x has 5 columns, the head 6"):
        vocab_loss(x[:, :5], weight, target)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        row_logprobs(x, weight, target, chunk=0)
