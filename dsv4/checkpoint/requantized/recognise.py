"""Find the weights of other quantisers among the tensors of a folder, by the last words of their names.

Configs are not asked: their patterns name modules of the program that wrote them (`fused_wqa_wkv`), and the tensors
say everything. Two forms hold the release's own numbers under other names and load without conversion:

    weight (FP8) + weight_scale per 128x128 tile                        -> weight + scale
    weight_packed or weight (FP4 codes) + weight_scale (e8m0, per 32)    -> weight + scale
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from dsv4.checkpoint.format import CheckpointError, StoredTensor, TensorSpec
from dsv4.checkpoint.requantized import nvfp4, packed_integers, row_scales
from dsv4.checkpoint.requantized.method import Method, PackedWeight
from dsv4.kernels.quant import FP4_BLOCK, FP8_BLOCK

METHODS: tuple[Method, ...] = (
    nvfp4.COMPRESSED_TENSORS,
    nvfp4.MODELOPT,
    packed_integers.COMPRESSED_TENSORS,
    packed_integers.GPTQ,
    row_scales.ROW_SCALES,
)
# Words that no tensor of the release ends in; "weight" alone is one of both.
_WORDS = frozenset(word for method in METHODS for word in (*method.needed, *method.optional)) - {"weight"}
_ENDINGS = tuple(f".{word}" for word in sorted(_WORDS))
_OF_ACTIVATIONS = frozenset({"input_scale", "input_global_scale"})
_BYTES = (torch.uint8, torch.int8)
_E8M0 = (torch.uint8, torch.int8, torch.float8_e8m0fnu)


def recognise(entries: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], dict[str, PackedWeight]]:
    """The tensors that have the release's form, and the weights that do not, by the name of the parameter.

    `entries` have released names. Raises CheckpointError for tensors of another quantiser that no method reads, and for
    a weight with scales of both names that differ.
    """
    foreign = [name for name in entries if name.endswith(_ENDINGS)]
    if not foreign:
        return entries, {}
    left, packed = dict(entries), {}
    for stem in dict.fromkeys(name.rpartition(".")[0] for name in foreign):
        names = {word: f"{stem}.{word}" for word in (*_WORDS, "weight") if f"{stem}.{word}" in left}
        parts = {word: left.pop(name) for word, name in names.items()}
        own, scale = _released_form(parts), left.get(f"{stem}.scale")
        others = sorted(parts.keys() - {"weight", "weight_packed"} - _OF_ACTIVATIONS)
        if scale is not None and others and not (own is not None and _equal(scale, own[1])):
            raise CheckpointError(
                f"{scale.file}: {f'{stem}.weight'!r} has {f'{stem}.scale'!r} and also "
                f"{', '.join(f'{stem}.{word}' for word in others)}, which differ: only one can be its scale"
            )
        if own is None:
            packed[f"{stem}.weight"] = PackedWeight(_method(stem, parts), parts)
        else:
            left[f"{stem}.weight"], left[f"{stem}.scale"] = own
    return left, packed


def _method(stem: str, parts: Mapping[str, StoredTensor]) -> Method:
    words = frozenset(parts)
    found = next((method for method in METHODS if method.reads(words)), None)
    if found is None:
        known = "; ".join(f"{method.name}: {', '.join(sorted(method.needed))}" for method in METHODS)
        raise CheckpointError(
            f"{next(iter(parts.values())).file}: {stem!r} is stored as {', '.join(sorted(words))}, which no known "
            f"form has ({known})"
        )
    return found


def _released_form(parts: Mapping[str, StoredTensor]) -> tuple[StoredTensor, StoredTensor] | None:
    """Weight and scale where they hold the release's numbers; None where they do not."""
    words = parts.keys() - _OF_ACTIVATIONS
    if words not in ({"weight", "weight_scale"}, {"weight_packed", "weight_scale"}):
        return None
    weight, scale = parts.get("weight_packed", parts.get("weight")), parts["weight_scale"]
    if weight is None or len(weight.spec.shape) != 2:
        return None
    rows, width = weight.spec.shape
    if weight.spec.dtype == torch.float8_e4m3fn and scale.spec.shape == (-(-rows // FP8_BLOCK), -(-width // FP8_BLOCK)):
        return weight, scale
    blocks = (rows, 2 * width // FP4_BLOCK)
    if weight.spec.dtype in _BYTES and scale.spec.dtype in _E8M0 and scale.spec.shape == blocks:
        return _as(weight, torch.int8), _as(scale, torch.float8_e8m0fnu)
    return None


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of the files are the same. Reads both where type and shape are."""
    return one.spec == other.spec and _stored_bytes(one) == _stored_bytes(other)


def _stored_bytes(entry: StoredTensor) -> bytes:
    with entry.file.open("rb") as stream:
        stream.seek(entry.begin)
        return stream.read(entry.end - entry.begin)


def _as(entry: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    return replace(entry, spec=TensorSpec(dtype, entry.spec.shape))
