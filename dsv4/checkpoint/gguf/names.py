"""The names of a GGUF file's tensors (architecture `deepseek4` of llama.cpp) and the released ones.

One table gives both directions. Three kinds differ by more than the name: the routed experts of a layer lie in one
tensor per matrix, hash tables are I32, and the prediction block (`mtp.*`) goes to a file of its own there, which is
neither written nor read here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_ROOT = (
    ("embed.weight", "token_embd.weight"),
    ("head.weight", "output.weight"),
    ("norm.weight", "output_norm.weight"),
    ("hc_head_fn", "output_hc_fn.weight"),
    ("hc_head_base", "output_hc_base.weight"),
    ("hc_head_scale", "output_hc_scale.weight"),
)
_LAYER = (
    ("attn_norm.weight", "attn_norm.weight"),
    ("ffn_norm.weight", "ffn_norm.weight"),
    ("hc_attn_fn", "hc_attn_fn.weight"),
    ("hc_attn_base", "hc_attn_base.weight"),
    ("hc_attn_scale", "hc_attn_scale.weight"),
    ("hc_ffn_fn", "hc_ffn_fn.weight"),
    ("hc_ffn_base", "hc_ffn_base.weight"),
    ("hc_ffn_scale", "hc_ffn_scale.weight"),
    ("attn.attn_sink", "attn_sinks.weight"),
    ("attn.wq_a.weight", "attn_q_a.weight"),
    ("attn.wq_b.weight", "attn_q_b.weight"),
    ("attn.q_norm.weight", "attn_q_a_norm.weight"),
    ("attn.wkv.weight", "attn_kv.weight"),
    ("attn.kv_norm.weight", "attn_kv_a_norm.weight"),
    ("attn.wo_a.weight", "attn_output_a.weight"),
    ("attn.wo_b.weight", "attn_output_b.weight"),
    ("attn.compressor.ape", "attn_compressor_ape.weight"),
    ("attn.compressor.wkv.weight", "attn_compressor_kv.weight"),
    ("attn.compressor.wgate.weight", "attn_compressor_gate.weight"),
    ("attn.compressor.norm.weight", "attn_compressor_norm.weight"),
    ("attn.indexer.wq_b.weight", "indexer.attn_q_b.weight"),
    ("attn.indexer.weights_proj.weight", "indexer.proj.weight"),
    ("attn.indexer.compressor.ape", "indexer_compressor_ape.weight"),
    ("attn.indexer.compressor.wkv.weight", "indexer_compressor_kv.weight"),
    ("attn.indexer.compressor.wgate.weight", "indexer_compressor_gate.weight"),
    ("attn.indexer.compressor.norm.weight", "indexer_compressor_norm.weight"),
    ("ffn.gate.weight", "ffn_gate_inp.weight"),
    ("ffn.gate.bias", "exp_probs_b.bias"),
    ("ffn.gate.tid2eid", "ffn_gate_tid2eid.weight"),
    ("ffn.shared_experts.w1.weight", "ffn_gate_shexp.weight"),
    ("ffn.shared_experts.w2.weight", "ffn_down_shexp.weight"),
    ("ffn.shared_experts.w3.weight", "ffn_up_shexp.weight"),
)
_EXPERTS = (("w1", "ffn_gate_exps"), ("w2", "ffn_down_exps"), ("w3", "ffn_up_exps"))

_ROOT_TO_GGUF: Mapping[str, str] = MappingProxyType(dict(_ROOT))
_LAYER_TO_GGUF: Mapping[str, str] = MappingProxyType(dict(_LAYER))
_ROOT_FROM_GGUF: Mapping[str, str] = MappingProxyType({theirs: ours for ours, theirs in _ROOT})
_LAYER_FROM_GGUF: Mapping[str, str] = MappingProxyType({theirs: ours for ours, theirs in _LAYER})
_EXPERTS_TO_GGUF: Mapping[str, str] = MappingProxyType(dict(_EXPERTS))
_EXPERTS_FROM_GGUF: Mapping[str, str] = MappingProxyType({f"{theirs}.weight": ours for ours, theirs in _EXPERTS})
_OUR_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_OUR_EXPERT = re.compile(r"ffn\.experts\.(\d+)\.(w[123])\.weight")
_THEIR_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")


@dataclass(frozen=True, slots=True)
class GgufPlace:
    """Where a parameter lies: the tensor's name, and which of its outer slices for a routed expert."""

    tensor: str
    expert: int | None = None


def gguf_place(parameter: str) -> GgufPlace:
    """The place of a parameter of the backbone by its released name. Raises KeyError for any other."""
    if parameter in _ROOT_TO_GGUF:
        return GgufPlace(_ROOT_TO_GGUF[parameter])
    layer = _OUR_LAYER.fullmatch(parameter)
    if layer is None:
        raise KeyError(parameter)
    expert = _OUR_EXPERT.fullmatch(layer[2])
    if expert is not None:
        return GgufPlace(f"blk.{layer[1]}.{_EXPERTS_TO_GGUF[expert[2]]}.weight", int(expert[1]))
    return GgufPlace(f"blk.{layer[1]}.{_LAYER_TO_GGUF[layer[2]]}")


def parameter_of(tensor: str) -> str | None:
    """The released name of a tensor that holds one parameter; for one that holds those of all experts, the name with
    `*` in place of the expert's number. None for a tensor that the model does not have."""
    if tensor in _ROOT_FROM_GGUF:
        return _ROOT_FROM_GGUF[tensor]
    layer = _THEIR_LAYER.fullmatch(tensor)
    if layer is None:
        return None
    prefix = f"layers.{int(layer[1])}."
    if layer[2] in _EXPERTS_FROM_GGUF:
        return f"{prefix}ffn.experts.*.{_EXPERTS_FROM_GGUF[layer[2]]}.weight"
    ours = _LAYER_FROM_GGUF.get(layer[2])
    return None if ours is None else prefix + ours
