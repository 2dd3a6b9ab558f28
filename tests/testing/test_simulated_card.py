"""The simulated card raises wherever a CUDA card would refuse tensors of the host, and computes what the host does."""

import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dsv4.kernels.norm import rms_norm
from dsv4.testing.card import CARD, MixedDevicesError, simulated_card

HOST = torch.device("cpu")


def both() -> tuple[Tensor, Tensor]:
    """The same matrix on the card and on the host."""
    x = torch.randn(3, 4)
    return x.to(CARD), x


@pytest.mark.parametrize(
    "mix",
    [
        lambda card, host: card + host,
        lambda card, host: card @ host.T,
        lambda card, host: torch.cat([card, host]),
        lambda card, host: card[torch.tensor([0, 2])],
        lambda card, host: host[torch.tensor([0, 2]).to(CARD)],
        lambda card, host: card.index_select(0, torch.tensor([0])),
        lambda card, host: torch.where(host > 0, card, 0.0),
        lambda card, host: card.add_(host),
        lambda card, host: torch.nn.functional.embedding(torch.tensor([1]), card),
        lambda card, host: torch._foreach_add([card], [host]),
        lambda card, host: card.matmul(torch.tensor(2.0).expand(4)),
        lambda card, host: torch.empty(3, device=CARD).normal_(generator=torch.Generator()),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_tensors_of_both_sides_do_not_mix(mix: Callable[[Tensor, Tensor], object], inference: bool) -> None:
    with simulated_card(), torch.inference_mode(inference), pytest.raises(MixedDevicesError):
        mix(*both())


def test_what_a_card_allows_computes_what_the_host_computes() -> None:
    with simulated_card():
        card, host = both()
        assert card.device == CARD
        for run in (
            lambda x: x * torch.tensor(2.0),  # a scalar of the host is fine
            lambda x: torch.where(x > 0, x, -1.0),
            lambda x: x[x > 0].sort().values,
            lambda x: x.new_tensor([1.0, 2.0]) + x[:2, 0],
            lambda x: torch.arange(4, device=x.device) + x,
            lambda x: torch.tensor([1, 2, 3], device=x.device).repeat_interleave(
                torch.tensor([1, 0, 2], device=x.device)
            ),
            lambda x: torch.full((2,), 7.0, device=x.device).view(torch.int32),
            lambda x: x.to(torch.float8_e4m3fn).to(torch.float32),
        ):
            found = run(card)
            assert found.device == CARD
            assert torch.equal(found.cpu(), run(host))
        assert (card.tolist(), card.sum().item(), bool((card > 0).any())) == (
            host.tolist(),
            host.sum().item(),
            bool((host > 0).any()),
        )
        view = card[1:]
        view.copy_(torch.ones(2, 4))
        assert card.cpu()[1:].eq(1).all()


def test_gradients_stay_on_the_card() -> None:
    with simulated_card():
        card, host = (x.requires_grad_() for x in both())
        for x in (card, host):
            (x.square() * torch.arange(4, device=x.device)).sum().backward()
        assert card.grad is not None
        assert host.grad is not None
        assert card.grad.device == CARD
        assert torch.equal(card.grad.cpu(), host.grad)
        layer = torch.nn.Linear(3, 2).to(CARD)
        layer.weight.data = torch.zeros(2, 3, device=CARD)
        assert torch.equal(layer(torch.ones(1, 3, device=CARD)).cpu()[0], layer.bias.cpu())


def test_memory_of_the_card_is_out_of_reach() -> None:
    with simulated_card():
        card, _ = both()
        with pytest.raises(TypeError, match=r"use Tensor\.cpu"):
            card.numpy()
        with pytest.raises(TypeError, match="bring it to the host"):
            pickle.dumps(card)
        assert card.data_ptr() > 1 << 62
        weight = torch.ones(4)
        with pytest.raises(ValueError, match="is on meta, not on the CPU"):
            rms_norm(card, weight.to(CARD), 1e-6, "native")
        with pytest.raises(NotImplementedError, match="no kernel for the card"), torch.no_grad():
            torch.ops.dsv4.rms_norm(card, weight.to(CARD), 1e-6)


def test_threads_see_the_card_too() -> None:
    found: list[Tensor] = []
    with simulated_card():
        thread = threading.Thread(target=lambda: found.append(torch.zeros(2, device=CARD) + 1))
        thread.start()
        thread.join()
        assert found[0].tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="no simulated card has made"):
        torch.zeros(2, device=CARD) + found[0]
