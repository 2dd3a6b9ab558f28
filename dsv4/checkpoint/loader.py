"""From a checkpoint folder to the state of a model: which dtype each parameter computes in.

fp32     every weight dequantised, everything float32: the mode for comparisons and training
bf16     linears and embedding bfloat16; the parts that the report computes in float32 compute in float32 (norms,
         router, compressor, head, hyper-connections, sinks); the matrices of router, compressor and head stay in
         bfloat16 when they are stored so
release  as bf16, but FP8 and FP4 weights stay as stored, with their scales. attn.wo_a, whose inputs the release does
         not quantise, becomes bfloat16 when its groups are no multiple of 128 rows

Hash tables are int64 in every mode. Scales are e8m0 or float32 in use; a file may hold them in any float type. Loading
checks norms, sinks, biases and the scales of linears for NaN and infinity. It checks all values of small folders, and
of FP8 weights that it multiplies out anyway (see `values`).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from dsv4.checkpoint.format import CheckpointError, TensorSpec
from dsv4.checkpoint.names import BF16, stored
from dsv4.checkpoint.reader import CheckpointReader, raise_problems
from dsv4.checkpoint.values import is_small, read_at_load, value_problem
from dsv4.config import Mode, ModelConfig
from dsv4.config.modes import check_mode
from dsv4.kernels.quant import FP4_BLOCK, FP8_BLOCK, float_to_e8m0
from dsv4.model.expert import MATRICES, StoredExperts
from dsv4.model.layers import Linear, walk
from dsv4.parameters import Parameter, Role, Storage, parameters, scale_of

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SCALES = (torch.float8_e8m0fnu, *_FLOATS)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
QUANTISABLE = (Storage.LINEAR, Storage.EXPERT)  # what a layout may quantise


def state_for(
    config: ModelConfig, reader: CheckpointReader, mode: Mode = "bf16", *, mtp: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for every parameter of the model, in released order; quantised scales follow their
    weight.

    Where nothing must be cast the tensor is a view of the file's map. `mtp=False` leaves the prediction block and
    the draft stages (DSpark) out. Raises CheckpointError before the first tensor when any is missing, unknown or of
    the wrong shape.
    """
    return _yield_state(_wanted(config, reader, mode, mtp=mtp), reader, mode, config)


def _wanted(config: ModelConfig, reader: CheckpointReader, mode: Mode, *, mtp: bool) -> list[Parameter]:
    """The parameters that the folder must provide. Raises CheckpointError if it does not."""
    check_mode(mode)
    wanted = [p for p in parameters(config) if mtp or not p.prediction]
    raise_problems(state_problems(wanted, reader, skip_mtp=not mtp or not config.predicts))
    return wanted


def load_into(
    model: nn.Module, config: ModelConfig, reader: CheckpointReader, mode: Mode = "bf16", *, mtp: bool = True
) -> None:
    """Put a checkpoint's tensors in place of a model's parameters and buffers (which may be on the meta
    device). Routed experts that are tables (`StoredExperts`) stay tables.

    Raises CheckpointError when the model's names differ from the checkpoint's.
    """
    wanted = _wanted(config, reader, mode, mtp=mtp)
    tables = {name: part for name, part in walk(model) if isinstance(part, StoredExperts) and part.folded}
    apart = {f"{name}.{e}.{w}.weight" for name in tables for e in range(config.n_routed_experts) for w in MATRICES}
    state = dict(_yield_state([p for p in wanted if p.name not in apart], reader, mode, config))
    _make_room(model, state)
    own = {
        f"{path}.{name}" if path else name
        for path, module in walk(model)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    problems = [f"{reader.folder}: the model has no {name!r}" for name in state if name not in own]
    problems += [f"{reader.folder}: no tensor for the model's {name!r}" for name in sorted(own - set(state))]
    raise_problems(problems)
    _put(model, state)
    rest = {p.name: p for p in wanted if p.name in apart}
    for name, experts in tables.items():
        experts.fill(_tables(name, rest, reader, mode, config))


def _put(model: nn.Module, state: dict[str, Tensor]) -> None:
    """As `model.load_state_dict(state, assign=True)`, which reads the whole list of names once for every module."""
    for path, module in walk(model):
        prefix = f"{path}." if path else ""
        for name, old in module._parameters.items():
            if old is not None:
                module.register_parameter(name, nn.Parameter(state[prefix + name], requires_grad=old.requires_grad))
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = state[prefix + name]


def _tables(
    layer: str, wanted: dict[str, Parameter], reader: CheckpointReader, mode: Mode, config: ModelConfig
) -> dict[str, Sequence[Tensor | None]]:
    """The routed experts of a layer as `StoredExperts.tables`."""
    tables: dict[str, Sequence[Tensor | None]] = {}
    for matrix in MATRICES:
        names = [f"{layer}.{e}.{matrix}.weight" for e in range(config.n_routed_experts)]
        if mode == "release" and is_quantized(reader.spec(names[0])) and not is_small(reader):
            scales = [scale_of(name) for name in names]
            weights, codes = reader.equal_tensors(names), reader.equal_tensors(scales)
            if weights is not None and codes is not None and reader.spec(scales[0]).dtype == torch.float8_e8m0fnu:
                tables |= {f"{matrix}.weight": weights, f"{matrix}.scale": codes}
                continue
        state = dict(_yield_state([wanted[name] for name in names], reader, mode, config))
        tables[f"{matrix}.weight"] = [state[name] for name in names]
        if any(scale_of(name) in state for name in names):
            tables[f"{matrix}.scale"] = [state.get(scale_of(name)) for name in names]
    return tables


def _make_room(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give every linear layer whose weight comes quantised a frozen weight and a `scale` beside it."""
    for name, module in walk(model):
        scale = state.get(f"{name}.scale")
        if scale is not None and isinstance(module, Linear):
            module.weight = nn.Parameter(state[f"{name}.weight"], requires_grad=False)
            module.register_parameter("scale", nn.Parameter(scale, requires_grad=False))


def state_problems(
    wanted: list[Parameter], reader: CheckpointReader, *, skip_mtp: bool, convertible: bool = False
) -> list[str]:
    """The reasons why `reader` cannot provide exactly these parameters: missing, unknown, of another shape, or, unless
    they are only to be converted (`convertible`), stored in a form that loading does not read."""
    problems: list[str] = expert_count_problems(wanted, reader)
    if problems:
        return problems
    known: set[str] = set()
    foreign: dict[str, list[str]] = {}
    for parameter in wanted:
        known.add(parameter.name)
        if parameter.name in reader.packed:
            packed = reader.packed[parameter.name]
            problem = packed.problem(parameter.shape)
            if problem:
                where = f"{reader.file_of(parameter.name)}: tensor {parameter.name!r}"
                problems.append(f"{where}, {packed.method.name}: {problem}")
            continue
        if parameter.name not in reader:
            problems.append(f"{reader.folder}: tensor {parameter.name!r} is missing")
            continue
        problem = _spec_problem(parameter, reader)
        if problem:
            problems.append(f"{reader.file_of(parameter.name)}: {problem}")
        elif is_quantized(reader.spec(parameter.name)):
            known.add(parameter.scale_name)
            if parameter.storage not in QUANTISABLE:
                foreign.setdefault(f"FP8 where the release has none ({parameter.role})", []).append(parameter.name)
    if not convertible:
        problems += [*packed_problems(reader), *_to_convert(reader, foreign)]
    for name in (*reader.names(), *reader.packed):
        if name not in known and not (skip_mtp and name.startswith("mtp.")):
            problems.append(f"{reader.file_of(name)}: unknown tensor {name!r}")
    return problems


def packed_problems(reader: CheckpointReader) -> list[str]:
    """A sentence for each form of another quantiser in a folder, with the command that converts it."""
    found: dict[str, list[str]] = {}
    for name, packed in reader.packed.items():
        found.setdefault(packed.method.name, []).append(name)
    return _to_convert(reader, found)


def _to_convert(reader: CheckpointReader, names_of_form: Mapping[str, list[str]]) -> list[str]:
    return [
        f"{reader.folder}: {len(names)} weights are stored as {form} (first: {names[0]!r}), which only "
        f"`dsv4 convert {reader.folder} NEW_FOLDER` reads; NEW_FOLDER can be loaded"
        for form, names in names_of_form.items()
    ]


def expert_count_problems(wanted: list[Parameter], reader: CheckpointReader) -> list[str]:
    """One sentence where routers of the backbone have another number of experts than the config: a pruned model, or
    the config of another one. It replaces one sentence for each tensor that is missing or too many."""
    found: dict[int, list[str]] = {}
    experts = 0
    for parameter in wanted:
        if parameter.role is Role.ROUTER and parameter.name.endswith("gate.weight") and not parameter.prediction:
            experts = parameter.shape[0]
            spec = reader.spec(parameter.name) if parameter.name in reader else None
            if spec is not None and len(spec.shape) == 2 and spec.shape[1] == parameter.shape[1]:
                found.setdefault(spec.shape[0], []).append(parameter.name.split(".ffn.")[0])
    if set(found) <= {experts}:
        return []
    if len(found) == 1:
        return [f"{reader.folder}: the files have {next(iter(found))} experts a layer, n_routed_experts is {experts}"]
    counts = ", ".join(f"{count} in {len(names)} layers (first: {names[0]})" for count, names in found.items())
    return [
        f"{reader.folder}: layers have different numbers of experts: {counts}; n_routed_experts is one number for "
        "all layers, so this pruned model cannot be loaded or converted"
    ]


def is_quantized(spec: TensorSpec) -> bool:
    """Whether a weight stored like this comes with a scale."""
    return spec.dtype in (torch.float8_e4m3fn, torch.int8)


def _spec_problem(parameter: Parameter, reader: CheckpointReader) -> str | None:
    """Why the stored tensor cannot be this parameter; None when it can."""
    spec = reader.spec(parameter.name)
    fp8_elsewhere = parameter.storage in (Storage.PLAIN, Storage.WIDE) and spec.dtype == torch.float8_e4m3fn
    if (parameter.storage in QUANTISABLE or fp8_elsewhere) and is_quantized(spec):
        form = _quantised_form(parameter, spec)
        expected, scale_name = form[parameter.name], scale_of(parameter.name)
        if spec.dtype == torch.int8 and parameter.shape[1] % FP4_BLOCK:
            return f"tensor {parameter.name!r}: FP4 needs a multiple of {FP4_BLOCK} columns, got {parameter.shape[1]}"
        if spec != expected:
            return f"tensor {parameter.name!r} should be {expected}, is {spec}"
        if scale_name not in reader:
            return f"tensor {parameter.name!r} ({spec}) has no {scale_name!r}"
        scale = reader.spec(scale_name)
        if scale.shape != form[scale_name].shape or scale.dtype not in _SCALES:
            return f"tensor {scale_name!r} should be {form[scale_name]}, is {scale}"
        return None
    expected = stored(parameter, BF16)[parameter.name]
    right_type = spec.dtype in (_INTEGERS if parameter.storage is Storage.TABLE else _FLOATS)
    if spec.shape != expected.shape or not right_type:
        return f"tensor {parameter.name!r} should be {expected}, is {spec}"
    return None


def _quantised_form(parameter: Parameter, spec: TensorSpec) -> dict[str, TensorSpec]:
    """The stored form of an FP4 or FP8 weight of this shape and of its scale; FP8 in tiles of any width."""
    N, K = parameter.shape
    if spec.dtype == torch.int8:
        weight = TensorSpec(torch.int8, (N, K // 2))
        scale = TensorSpec(torch.float8_e8m0fnu, (N, -(-K // FP4_BLOCK)))
    else:
        weight = TensorSpec(torch.float8_e4m3fn, (N, K))
        scale = TensorSpec(torch.float8_e8m0fnu, (-(-N // FP8_BLOCK), -(-K // FP8_BLOCK)))
    return {parameter.name: weight, parameter.scale_name: scale}


def _yield_state(
    wanted: list[Parameter], reader: CheckpointReader, mode: Mode, config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    whole = is_small(reader)
    for parameter in wanted:
        name = parameter.name
        if parameter.storage is Storage.TABLE:
            yield name, checked_table(name, reader, config.n_routed_experts)
            continue
        quantised = is_quantized(reader.spec(name))
        dtype = converted_to(parameter, reader.spec(name), mode, config)
        looked_at = set(read_at_load(parameter, reader, whole=whole))
        if quantised and dtype is not None:
            looked_at |= {name, parameter.scale_name}  # both are read now
        raise_problems([problem for item in sorted(looked_at) if (problem := value_problem(reader, item))])
        if dtype is not None:
            yield name, reader.dequantized(name, dtype)
            continue
        yield name, reader.tensor(name)
        if quantised:
            yield parameter.scale_name, _kernel_scale(parameter, reader)


def converted_to(parameter: Parameter, spec: TensorSpec, mode: Mode, config: ModelConfig) -> torch.dtype | None:
    """The dtype that loading converts a stored weight to; None where the model uses it as it is stored."""
    if parameter.storage is Storage.TABLE:
        return None if spec.dtype == torch.int64 else torch.int64
    if is_quantized(spec):
        whole_groups = config.o_lora_rank % FP8_BLOCK == 0
        kept = mode == "release" and (whole_groups or not parameter.float_inputs)
        return None if kept else _compute_dtype(parameter.storage, mode)
    if mode != "fp32" and parameter.storage is Storage.WIDE and spec.dtype == torch.bfloat16:
        return None
    dtype = _compute_dtype(parameter.storage, mode)
    return None if spec.dtype == dtype else dtype


def _kernel_scale(parameter: Parameter, reader: CheckpointReader) -> Tensor:
    """A scale in the type that products take: e8m0 beside FP4, e8m0 or float32 beside FP8."""
    scale = reader.tensor(parameter.scale_name)
    if scale.dtype == torch.float8_e8m0fnu:
        return scale
    if reader.spec(parameter.name).dtype != torch.int8:
        return scale.to(torch.float32)
    try:
        return float_to_e8m0(scale.to(torch.float32))
    except ValueError as error:
        raise CheckpointError(
            f"{reader.file_of(parameter.scale_name)}: tensor {parameter.scale_name!r}: {error}"
        ) from None


def checked_table(name: str, reader: CheckpointReader, experts: int) -> Tensor:
    """A hash-routing table as int64, whose entries index the experts. Raises CheckpointError."""
    table = reader.tensor(name)
    low, high = (int(bound) for bound in table.aminmax())
    if low < 0 or high >= experts:
        raise CheckpointError(
            f"{reader.file_of(name)}: tensor {name!r} names experts {low} to {high}, there are 0 to {experts - 1}"
        )
    return table.to(torch.int64)


def table_problems(config: ModelConfig, reader: CheckpointReader) -> list[str]:
    """A sentence for each hash-routing table with an entry that is no expert. The tables are small."""
    problems = []
    for parameter in parameters(config):
        if parameter.storage is Storage.TABLE:
            try:
                checked_table(parameter.name, reader, config.n_routed_experts)
            except CheckpointError as error:
                problems.append(str(error))
    return problems


def _compute_dtype(storage: Storage, mode: Mode) -> torch.dtype:
    if mode == "fp32" or storage in (Storage.NORM, Storage.WIDE, Storage.FLOAT):
        return torch.float32
    return torch.bfloat16
