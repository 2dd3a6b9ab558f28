"""A simulated accelerator card: finds code that mixes tensors of the card and of the host, without a card.

Inside `simulated_card` the device `CARD` holds real numbers, in the memory of the host, so code that depends on them
runs as well. An operation that mixes tensors of both sides raises, as on a CUDA card, and so does a tensor that a
native kernel or numpy would read in place. Tensors cross over by `to`, `cpu`, `copy_`, `item` and `tolist` alone.

What it cannot show: operations and dtypes that CUDA lacks, other roundings, speed. torch's label "meta" stands for the
card, because torch knows that device everywhere and has no kernels of its own for it here.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

CARD = torch.device("meta")
_HOST = torch.device("cpu")
_FAR = 1 << 62  # added to addresses: native code that used one would fault at once
# operations that CUDA runs with a host scalar beside tensors of the card, besides the elementwise ones
_TAKES_SCALARS = ("aten::index_put_", "aten::index_put", "aten::fill_", "aten::where", "aten::masked_fill_")
_DATA: Any = vars(torch._C.TensorBase)["data"]
_FROM_DATA = ("tensor", "as_tensor", "asarray")


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of the card and of the host."""


class CardTensor(Tensor):
    """A tensor in the memory of the simulated card; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "CardTensor":
        # NOTE: torch refuses views of an ordinary tensor that are inference tensors
        with torch.inference_mode(False):
            made = Tensor._make_wrapper_subclass(
                cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=CARD
            )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"CardTensor({self.held!r})"

    def __reduce_ex__(self, proto: Any) -> Any:
        raise TypeError("a tensor of the card may not be pickled: bring it to the host first")

    def __array__(self, *args: Any, **named: Any) -> Any:
        raise TypeError("can't convert a tensor of the card to numpy: use Tensor.cpu() first")

    numpy = __array__

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: Any, *args: Any, **named: Any) -> Tensor:
        return self.held.new_tensor(data, *args, **named).to(CARD)

    @property
    def is_meta(self) -> bool:  # pyrefly: ignore
        """False: it has numbers."""
        return False

    @property
    def data(self) -> Tensor:  # pyrefly: ignore
        return _DATA.__get__(self)

    @data.setter
    def data(self, value: "CardTensor") -> None:
        _DATA.__set__(self, value)
        self.held = value.held

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.data_ptr:
            return args[0].held.data_ptr() + _FAR
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, dict(kwargs or {}))


class _Factories(TorchDispatchMode):
    """Sees operations without a tensor of the card, so that factories can make one."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _from_data(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and its like, for the card: torch makes them on the meta device before any dispatch."""

    def made(*args: Any, **named: Any) -> Tensor:
        if _on_card(named.get("device")):
            return make(*args, **{**named, "device": _HOST}).to(CARD)
        return make(*args, **named)

    return made


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation: on the card if an argument is there or if the device says so."""
    name = func.overloadpacket._qualified_op_name
    if _is_composite(func):  # inference_mode hands them over as they are
        with _Factories():
            return func.decompose(*args, **kwargs)
    cards, hosts = _sides(name, (*args, *kwargs.values()))
    device = kwargs.get("device")
    if name == "aten::_to_copy":
        to = kwargs.pop("device", None) or args[0].device
        made = func(_held(args[0]), **kwargs)
        return CardTensor(made) if _on_card(to) else made
    if name in ("aten::copy_", "aten::_local_scalar_dense"):
        made = func(*map(_held, args), **kwargs)
        return args[0] if name == "aten::copy_" else made
    there = bool(cards) if device is None else _on_card(device)
    if there:
        _refuse_mixed(func, name, hosts, kwargs.get("generator"))
    if device is not None and there:
        kwargs["device"] = _HOST
    made = func(*map(_held, args), **{key: _held(value) for key, value in kwargs.items()})
    if not there:
        return made
    made = tree_map_only(Tensor, CardTensor, made)
    return return_and_correct_aliasing(func, args, kwargs, made) if _aliases(func) else made


def _sides(name: str, values: Iterable[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of the card and those of the host among the arguments of an operation."""
    cards: list[Tensor] = []
    hosts: list[Tensor] = []
    for value in values:
        if isinstance(value, CardTensor):
            cards.append(value)
        elif isinstance(value, Tensor):
            if value.device == CARD:
                raise RuntimeError(f"{name}: a tensor of the meta device, which no simulated card has made")
            hosts.append(value)
        elif isinstance(value, list | tuple):
            inner = _sides(name, value)
            cards, hosts = cards + inner[0], hosts + inner[1]
    return cards, hosts


def _refuse_mixed(func: Any, name: str, hosts: list[Tensor], generator: torch.Generator | None) -> None:
    if name.startswith("dsv4::"):
        raise NotImplementedError(f"{name} has no kernel for the card")
    if generator is not None:
        raise MixedDevicesError(f"{name}: a generator of the host for a tensor of the card")
    scalars = torch.Tag.pointwise in func.tags or name in _TAKES_SCALARS
    wrong = [str(list(value.shape)) for value in hosts if value.dim() or not scalars]
    if wrong:
        raise MixedDevicesError(f"{name}: all tensors must be on the card, on the host are: {', '.join(wrong)}")


@cache
def _is_composite(func: Any) -> bool:
    """Whether torch defines it by other operations alone."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _aliases(func: Any) -> bool:
    """Whether a result may share memory with an argument."""
    return any(value.alias_info is not None for value in (*func._schema.arguments, *func._schema.returns))


def _held(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_held, value))
    return value.held if isinstance(value, CardTensor) else value


def _on_card(device: Any) -> bool:
    return device is not None and torch.device(device) == CARD


@contextmanager
def simulated_card() -> Iterator[torch.device]:
    """While entered, `CARD` is a device with memory, in threads that start meanwhile too."""
    run = threading.Thread.run

    def inside(thread: threading.Thread) -> None:
        with _Factories():
            run(thread)

    with ExitStack() as held:
        held.enter_context(patch.object(threading.Thread, "run", inside))
        # torch's fused AdamW has a list of devices
        fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
        held.enter_context(patch(fused, lambda: ["cpu", "cuda", CARD.type]))
        for name in _FROM_DATA:
            held.enter_context(patch.object(torch, name, _from_data(getattr(torch, name))))
        held.enter_context(_Factories())
        yield CARD
