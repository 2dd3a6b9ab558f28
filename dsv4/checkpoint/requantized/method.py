"""What a method of quantisation is to the reader of a folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from dsv4.checkpoint.format import StoredTensor, TensorSpec

Specs = Mapping[str, TensorSpec]  # by the last word of a name: `weight_packed`, `weight_scale`, ...
Parts = Mapping[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """How a quantiser stores one weight [N, K] as several tensors beside each other.

    name: for messages. needed: the last words of the tensors' names. optional: those that may be there and are read,
    or that concern activations and are not. problem: why tensors of these types and shapes cannot be a weight of a
    shape, None when they can. values: the weight in float32. released: for a form that holds the release's own codes in
    another order, the FP4 weight and scale.
    """

    name: str
    needed: frozenset[str]
    optional: frozenset[str]
    problem: Callable[[Specs, Shape], str | None]
    values: Callable[[Parts, Shape], Tensor]
    released: Callable[[Parts], tuple[Tensor, Tensor]] | None = None

    def reads(self, words: frozenset[str]) -> bool:
        """Whether these are the tensors of one of its weights."""
        return self.needed <= words <= self.needed | self.optional


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight of a folder that only `dsv4 convert` reads."""

    method: Method
    parts: Mapping[str, StoredTensor]

    def problem(self, shape: Shape) -> str | None:
        """Why it cannot be a parameter of this shape; None when it can. Reads no data."""
        return self.method.problem({word: part.spec for word, part in self.parts.items()}, shape)


def expect(word: str, spec: TensorSpec, dtypes: tuple[object, ...], *shapes: Shape) -> str | None:
    """Why a tensor has none of these types and shapes; None when it has."""
    if spec.dtype in dtypes and spec.shape in shapes:
        return None
    wanted = TensorSpec(dtypes[0], shapes[0])  # type: ignore[arg-type]
    return f"{word} should be {wanted}, is {spec}"
