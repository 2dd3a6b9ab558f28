"""Bytes of a model's weights once it is loaded: what is used in place from its files, and what loading converts."""

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch

from dsv4.checkpoint import Parameter, Storage, TensorSpec
from dsv4.checkpoint.loader import converted_to, is_quantized
from dsv4.config import Mode
from dsv4.parameters import Role, parameter_table
from dsv4.planning.files import ModelFiles


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of weights in memory.

    mapped: used in place from the files, so the system can drop and read them again. made: converted by loading, so
    they stay. Both without the routed experts, which are experts_mapped and experts_made. expert: the largest routed
    one. read, experts_read: what a token reads of dense weights and of its experts. quantised: the experts come with
    scales.
    """

    mapped: int
    made: int
    experts_mapped: int
    experts_made: int
    expert: int
    read: int
    experts_read: int
    quantised: bool

    def copied(self) -> "WeightBytes":
        """The same where nothing is used in place from the files: in the memory of a card."""
        made, experts = self.made + self.mapped, self.experts_made + self.experts_mapped
        return replace(self, mapped=0, made=made, experts_mapped=0, experts_made=experts)


def weight_bytes(files: ModelFiles, mode: Mode, *, predict: bool) -> WeightBytes:
    """By the headers alone. predict: the prediction block runs too; otherwise its mapped weights are never read.
    Tensors that are missing count as nothing: loading names them."""
    config, totals = files.config, dict.fromkeys(("mapped", "made", "experts_mapped", "experts_made", "read"), 0)
    routed, quantised = 0, False
    each: Counter[str] = Counter()  # bytes of every routed expert
    for parameter in parameter_table(config).values():
        if parameter.name not in files.specs:
            continue
        mapped, made = _held(parameter, files, mode)
        runs = predict or not parameter.prediction
        if not runs:
            mapped = 0
        of_expert = parameter.role is Role.EXPERT
        totals["experts_mapped" if of_expert else "mapped"] += mapped
        totals["experts_made" if of_expert else "made"] += made
        if of_expert:
            routed += (mapped + made) * runs
            each[parameter.name.rsplit(".", 2)[0]] += mapped + made
            quantised = quantised or is_quantized(files.specs[parameter.name])
        elif runs and parameter.role is not Role.EMBEDDING and parameter.storage is not Storage.TABLE:
            totals["read"] += mapped + made
    chosen = routed * config.num_experts_per_tok // config.n_routed_experts
    largest = max(each.values(), default=0)
    return WeightBytes(**totals, expert=largest, experts_read=chosen, quantised=quantised)


def _held(parameter: Parameter, files: ModelFiles, mode: Mode) -> tuple[int, int]:
    """Bytes of a parameter and its scale that are (used in place, allocated)."""
    name, spec = parameter.name, files.specs[parameter.name]
    dtype = converted_to(parameter, spec, mode, files.config)
    if dtype is not None:
        return 0, parameter.numbers * dtype.itemsize
    sizes, made = {name: spec.nbytes}, 0
    scale = files.specs.get(parameter.scale_name) if is_quantized(spec) else None
    if scale is not None:
        wanted = scale_dtype(scale, spec)
        if scale.dtype == wanted:
            sizes[parameter.scale_name] = scale.nbytes
        else:
            made = math.prod(scale.shape) * wanted.itemsize
    mapped = sum(size for part, size in sizes.items() if part not in files.copied)
    return mapped, made + sum(sizes.values()) - mapped


def scale_dtype(scale: TensorSpec, weight: TensorSpec) -> torch.dtype:
    """What loading makes of a scale: e8m0 beside FP4, e8m0 or float32 beside FP8."""
    if weight.dtype == torch.int8 or scale.dtype == torch.float8_e8m0fnu:
        return torch.float8_e8m0fnu
    return torch.float32
