"""Token ids in any form: a list, a tensor, an array."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TokenIds = Sequence[int] | Tensor


def token_list(value: Any, name: str = "token_ids") -> list[int]:
    """The ids of a sequence of integers, a tensor or a numpy array of one dimension.

    Raises ValueError naming the wrong value.
    """
    if isinstance(value, str | bytes):
        raise ValueError(
            f"{name}: expected token ids, got a {type(value).__name__}: model.tokenizer.encode_text gives ids"
        )
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        if len(value.shape) != 1:
            raise ValueError(f"{name}: expected one row of token ids, got {kind} of shape {tuple(value.shape)}")
        if not _is_integral(value):
            raise ValueError(f"{name}: expected integers, got {kind} of {str(value.dtype).removeprefix('torch.')}")
        return value.tolist()
    try:
        items = list(value)
    except TypeError:
        raise ValueError(f"{name}: expected a sequence of token ids, got {type(value).__name__}") from None
    ids: list[int] = []
    for index, item in enumerate(items):
        try:
            if isinstance(item, bool):
                raise TypeError
            ids.append(operator.index(item))
        except TypeError:
            raise ValueError(f"{name}[{index}]: expected an integer, got {_shown(item)}") from None
    return ids


def _is_integral(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return getattr(value.dtype, "kind", "") in ("i", "u")


def _shown(item: object) -> str:
    text = repr(item)
    return text if len(text) <= 60 else f"{text[:57]}..."
