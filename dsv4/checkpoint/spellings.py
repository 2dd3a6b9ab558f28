"""Other spellings of the released names and types, read as the released ones.

Names    transformers saves `model.layers.0.attn.norm.weight` for `layers.0.attn.kv_norm.weight`, or, on request, its
         modules' own names (`self_attn.q_a_proj`, `mlp.experts.gate_up_proj` with all experts in one tensor).
Types    scales as plain bytes (U8, I8) in place of F8_E8M0; FP4 and FP8 codes as U8 or I8.

Nothing is copied: a tensor of all experts becomes one entry per expert, each a range of the same bytes.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import torch

from dsv4.checkpoint.format import CheckpointError, StoredTensor, TensorSpec
from dsv4.kernels.quant import FP4_BLOCK, FP8_BLOCK

_FOREIGN = re.compile(
    r"^model\.|^lm_head|^embed_tokens|hc_head\.|\.attn\.norm\.|\.self_attn\.|\.mlp\.|_scale_inv$|_hc\.|layernorm|rotary_emb|"
    r"\.(?:gate|up|down)_proj\."
)
# In this order: longer names before their parts.
_WORDS = (
    ("embed_tokens.", "embed."),
    ("lm_head.", "head."),
    ("hc_head.hc_", "hc_head_"),
    (".self_attn.", ".attn."),
    (".mlp.", ".ffn."),
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".attn_hc.", ".hc_attn_"),
    (".ffn_hc.", ".hc_ffn_"),
    (".sinks", ".attn_sink"),
    (".compressor.indexer.scorer.weights_proj.", ".indexer.weights_proj."),
    (".compressor.indexer.q_b_proj.", ".indexer.wq_b."),
    (".compressor.indexer.", ".indexer.compressor."),
    (".compressor.kv_norm.", ".compressor.norm."),
    (".compressor.gate_proj.", ".compressor.wgate."),
    (".position_bias", ".ape"),
    (".attn.norm.", ".attn.kv_norm."),
    (".q_a_proj.", ".wq_a."),
    (".q_b_proj.", ".wq_b."),
    (".kv_proj.", ".wkv."),
    (".o_a_proj.", ".wo_a."),
    (".o_b_proj.", ".wo_b."),
    (".q_a_norm.", ".q_norm."),
    (".gate.e_score_correction_bias", ".gate.bias"),
    (".weight_scale_inv", ".scale"),
)
_EXPERT_WORDS = ((".gate_proj.", ".w1."), (".down_proj.", ".w2."), (".up_proj.", ".w3."))
_FUSED = re.compile(r"(.*\.ffn\.experts\.)(gate_up_proj|down_proj)(\.weight|_scale_inv|\.scale)?")
_MOST_EXPERTS = 4096
_BYTES = (torch.uint8, torch.int8)


def released_name(name: str) -> str:
    """The released name of a tensor or module path in any known spelling; an unknown name is returned unchanged."""
    if not _FOREIGN.search(name):
        return name
    name = name.removeprefix("model.")
    for theirs, ours in _WORDS:
        name = name.replace(theirs, ours)
    if "experts." in name:
        for theirs, ours in _EXPERT_WORDS:
            name = name.replace(theirs, ours)
    return name


# layers whose module transformers calls otherwise, longer names before their parts
_MODULES = (
    (".attn.indexer.wq_b", ".self_attn.compressor.indexer.q_b_proj"),
    (".attn.wq_a", ".self_attn.q_a_proj"),
    (".attn.wq_b", ".self_attn.q_b_proj"),
    (".attn.wkv", ".self_attn.kv_proj"),
    (".attn.wo_a", ".self_attn.o_a_proj"),
    (".attn.wo_b", ".self_attn.o_b_proj"),
    (".ffn.", ".mlp."),
)
_EXPERT_MODULES = ((".w1", ".gate_proj"), (".w2", ".down_proj"), (".w3", ".up_proj"))


def transformers_name(layer: str) -> str:
    """The name of a linear layer's module in transformers: `layers.0.attn.wq_a` -> `model.layers.0.self_attn.q_a_proj`.
    transformers has the routed experts of a layer in one tensor, so a single one's name is its own there only in
    form."""
    for ours, theirs in (*_MODULES, *(_EXPERT_MODULES if "experts." in layer else ())):
        layer = layer.replace(ours, theirs)
    return f"model.{layer}"


def released_entries(entries: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same tensors under released names and types. Raises CheckpointError if two tensors get the same name."""
    renamed = [(released_name(name), entry) for name, entry in entries.items()]
    fused_rows = {new: entry.spec.shape[1] for new, entry in renamed if _FUSED.fullmatch(new) and _is_cube(entry)}
    found: dict[str, StoredTensor] = {}
    for new_name, entry in renamed:
        for new, part in _parts(new_name, entry, fused_rows):
            if new in found:
                raise CheckpointError(f"{entry.file}: tensor {new!r} is there in two spellings")
            found[new] = part
    for name, entry in found.items():
        if name.endswith(".scale") and entry.spec.dtype in _BYTES:
            found[name] = _viewed(entry, torch.float8_e8m0fnu)
        elif name.endswith(".weight") and entry.spec.dtype in _BYTES:
            found[name] = _viewed(entry, _code_type(entry, found.get(name.removesuffix("weight") + "scale")))
    return found


def _is_cube(entry: StoredTensor) -> bool:
    return len(entry.spec.shape) == 3 and 1 <= entry.spec.shape[0] <= _MOST_EXPERTS


def _parts(name: str, entry: StoredTensor, fused_rows: dict[str, int]) -> Iterator[tuple[str, StoredTensor]]:
    """One entry per expert and matrix where a tensor holds those of all experts, else the entry itself.

    fused_rows: rows of each tensor of all experts, to tell scales of tiles that belong to two matrices.
    """
    fused = _FUSED.fullmatch(name)
    if fused is None or not _is_cube(entry):
        yield name, entry
        return
    shape = entry.spec.shape
    prefix, which, kind = fused.groups()
    matrices = ("w1", "w3") if which == "gate_up_proj" else ("w2",)
    rows, uneven = divmod(shape[1], len(matrices))
    if uneven:
        raise CheckpointError(f"{entry.file}: tensor {name!r} {list(shape)} must have an even second dimension")
    suffix = "weight" if kind in (None, ".weight") else "scale"
    weight_rows = fused_rows.get(f"{prefix}{which}", fused_rows.get(f"{prefix}{which}.weight", shape[1]))
    if suffix == "scale" and shape[1] != weight_rows and weight_rows // len(matrices) % FP8_BLOCK:
        raise CheckpointError(
            f"{entry.file}: tensor {name!r} has tiles that belong to two matrices: moe_intermediate_size must be a "
            f"multiple of {FP8_BLOCK}, got {weight_rows // len(matrices)}"
        )
    spec = TensorSpec(entry.spec.dtype, (rows, shape[2]))
    begin = entry.begin
    for e in range(shape[0]):
        for matrix in matrices:
            yield f"{prefix}{e}.{matrix}.{suffix}", StoredTensor(entry.file, spec, begin, begin + spec.nbytes)
            begin += spec.nbytes


def _code_type(entry: StoredTensor, scale: StoredTensor | None) -> torch.dtype:
    """FP8 where bytes have one scale per tile, packed FP4 otherwise: the shape of the scales tells."""
    if scale is not None and len(entry.spec.shape) == 2:
        N, K = entry.spec.shape
        tiles, blocks = (-(-N // FP8_BLOCK), -(-K // FP8_BLOCK)), (N, 2 * K // FP4_BLOCK)
        if scale.spec.shape == tiles and tiles != blocks:
            return torch.float8_e4m3fn
    return torch.int8


def _viewed(entry: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    return entry if entry.spec.dtype == dtype else replace(entry, spec=TensorSpec(dtype, entry.spec.shape))
