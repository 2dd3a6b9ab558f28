"""From a checkpoint folder to the state of a model: which dtype each parameter computes in.

fp32     every weight dequantised, everything float32: the mode for comparisons and training
bf16     linears and embedding bfloat16; what the report computes in float32 computes in float32 (norms, router,
         compressor, head, hyper-connections, sinks), where the matrices among it (router, compressor, head) are
         kept in bfloat16 when they are stored so
release  as bf16, but FP8 and FP4 weights stay as stored, with their scales. attn.wo_a, whose inputs the release does
         not quantise, becomes bfloat16 when its groups are no multiple of 128 rows

Hash tables are int64 in every mode.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from dsv4.checkpoint.format import CheckpointError, TensorSpec
from dsv4.checkpoint.names import (
    BASE,
    BF16,
    RELEASE,
    RELEASE_FP8,
    Kind,
    Parameter,
    parameters,
    scale_of,
    stored,
)
from dsv4.checkpoint.reader import CheckpointReader, raise_problems
from dsv4.config import ModelConfig
from dsv4.kernels.quant import FP8_BLOCK
from dsv4.model.layers import Linear

Mode = Literal["fp32", "bf16", "release"]
_WO_A = "attn.wo_a.weight"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def state_for(
    config: ModelConfig, reader: CheckpointReader, mode: Mode = "bf16", *, mtp: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for every parameter of the model, in released order; quantised scales follow their
    weight.

    Where nothing must be cast the tensor is a view of the file's map. `mtp=False` leaves the prediction block
    out; DSpark draft stages (config.draft_stages) are always left out. Raises CheckpointError before the
    first tensor when any is missing, unknown or of the wrong shape.
    """
    if mode not in ("fp32", "bf16", "release"):
        raise ValueError(f"mode must be fp32, bf16 or release, got {mode!r}")
    wanted = [p for p in parameters(config) if mtp or not p.name.startswith("mtp.")]
    raise_problems(state_problems(wanted, reader, skip_mtp=not mtp or config.draft_stages > 0))
    return _yield_state(wanted, reader, mode, config)


def load_into(
    model: nn.Module, config: ModelConfig, reader: CheckpointReader, mode: Mode = "bf16", *, mtp: bool = True
) -> None:
    """Put a checkpoint's tensors in place of a model's parameters and buffers (which may be on the meta
    device).

    Raises CheckpointError when the model's names differ from the checkpoint's.
    """
    state = dict(state_for(config, reader, mode, mtp=mtp))
    _make_room(model, state)
    own = set(model.state_dict())
    problems = [f"{reader.folder}: the model has no {name!r}" for name in state if name not in own]
    problems += [f"{reader.folder}: no tensor for the model's {name!r}" for name in sorted(own - set(state))]
    raise_problems(problems)
    model.load_state_dict(state, strict=True, assign=True)


def _make_room(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give every linear layer whose weight comes quantised a frozen weight and a `scale` beside it."""
    for name, module in model.named_modules():
        scale = state.get(f"{name}.scale")
        if scale is not None and isinstance(module, Linear):
            module.weight = nn.Parameter(state[f"{name}.weight"], requires_grad=False)
            module.register_parameter("scale", nn.Parameter(scale, requires_grad=False))


def state_problems(wanted: list[Parameter], reader: CheckpointReader, *, skip_mtp: bool) -> list[str]:
    """What keeps `reader` from providing exactly these parameters: missing, unknown, of another shape."""
    problems: list[str] = []
    known: set[str] = set()
    for parameter in wanted:
        known.add(parameter.name)
        if parameter.name not in reader:
            problems.append(f"{reader.folder}: tensor {parameter.name!r} is missing")
            continue
        problem = _spec_problem(parameter, reader)
        if problem:
            problems.append(f"{reader.file_of(parameter.name)}: {problem}")
        elif is_quantized(reader.spec(parameter.name)):
            known.add(parameter.scale_name)
    for name in reader.names():
        if name not in known and not (skip_mtp and name.startswith("mtp.")):
            problems.append(f"{reader.file_of(name)}: unknown tensor {name!r}")
    return problems


def is_quantized(spec: TensorSpec) -> bool:
    """Whether a weight stored like this comes with a scale."""
    return spec.dtype in (torch.float8_e4m3fn, torch.int8)


def _spec_problem(parameter: Parameter, reader: CheckpointReader) -> str | None:
    """Why the stored tensor cannot be this parameter; None when it can."""
    spec = reader.spec(parameter.name)
    if parameter.kind in (Kind.LINEAR, Kind.EXPERT) and is_quantized(spec):
        allowed = [(RELEASE if spec.dtype == torch.int8 else RELEASE_FP8), BASE]
        forms = [stored(Parameter(parameter.name, Kind.EXPERT, parameter.shape), layout) for layout in allowed]
        if spec not in [form[parameter.name] for form in forms]:
            return f"tensor {parameter.name!r} should be {forms[0][parameter.name]}, is {spec}"
        scale_name = scale_of(parameter.name)
        if scale_name not in reader:
            return f"tensor {parameter.name!r} ({spec}) has no {scale_name!r}"
        scales = [form[scale_name] for form in forms if form[parameter.name] == spec]
        if reader.spec(scale_name) not in scales:
            return f"tensor {scale_name!r} should be {scales[0]}, is {reader.spec(scale_name)}"
        return None
    expected = stored(parameter, BF16)[parameter.name]
    right_type = spec.dtype == torch.int64 if parameter.kind is Kind.TABLE else spec.dtype in _FLOATS
    if spec.shape != expected.shape or not right_type:
        return f"tensor {parameter.name!r} should be {expected}, is {spec}"
    return None


def _yield_state(
    wanted: list[Parameter], reader: CheckpointReader, mode: Mode, config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    whole_groups = config.o_lora_rank % FP8_BLOCK == 0
    for parameter in wanted:
        name = parameter.name
        if parameter.kind is Kind.TABLE:
            yield name, _checked_table(name, reader, config.n_routed_experts)
        elif mode == "release" and is_quantized(reader.spec(name)) and (whole_groups or not name.endswith(_WO_A)):
            yield name, reader.tensor(name)
            yield parameter.scale_name, reader.tensor(parameter.scale_name)
        elif mode != "fp32" and parameter.kind is Kind.WIDE and reader.spec(name).dtype == torch.bfloat16:
            yield name, reader.tensor(name)
        else:
            yield name, reader.dequantized(name, _compute_dtype(parameter.kind, mode))


def _checked_table(name: str, reader: CheckpointReader, experts: int) -> Tensor:
    """A hash-routing table, whose entries index the experts."""
    table = reader.tensor(name)
    low, high = (int(bound) for bound in table.aminmax())
    if low < 0 or high >= experts:
        raise CheckpointError(
            f"{reader.file_of(name)}: tensor {name!r} names experts {low} to {high}, there are 0 to {experts - 1}"
        )
    return table


def _compute_dtype(kind: Kind, mode: Mode) -> torch.dtype:
    if mode == "fp32" or kind in (Kind.NORM, Kind.WIDE, Kind.FLOAT):
        return torch.float32
    return torch.bfloat16
