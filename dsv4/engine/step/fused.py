"""A Transformer and a CacheStore as the fused step takes them: the same tensors under the kernel's names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsv4.cache import CacheStore, Place
from dsv4.engine.step import contract as step
from dsv4.model.attention.compressor import Compressor
from dsv4.model.attention.csa import Indexer
from dsv4.model.attention.shared import Attention
from dsv4.model.block import Block
from dsv4.model.layers import KernelModule, Linear, RMSNorm
from dsv4.model.moe import MoE
from dsv4.model.mtp import MultiTokenPredictor
from dsv4.model.rope import RotaryTables
from dsv4.model.transformer import Transformer
from dsv4.model.watch import alien


class FusedStep:
    """Runs the steps of one model on one store in one native call each. `reason` says why it cannot, if so.

    The weights may change in place. When a tensor was moved or replaced, or the model is put together in another way,
    this must be made anew: `dsv4.model.watch.Watch` notices.
    """

    def __init__(self, model: Transformer, store: CacheStore) -> None:
        self.reason = unusual(model)
        if self.reason is not None:
            return
        blocks = [block for block in model.layers if isinstance(block, Block)]
        self._store = _store_of(store, [store.layers[block.spec.index] for block in blocks])
        self._backbone = _model_of(model, blocks, None)
        self.reason = step.supported(self._backbone, self._store)
        self._predictor = self._prediction_store = None
        if model.mtp and self.reason is None:
            predictor = model.mtp[0]
            assert isinstance(predictor, MultiTokenPredictor)
            self._prediction_store = _store_of(store, [store.layers[predictor.spec.index]])
            self._predictor = _model_of(model, [predictor], predictor)
            self.reason = step.supported(self._predictor, self._prediction_store)

    def run(
        self, tokens: Sequence[Sequence[int]], cached: Sequence[int], places: Sequence[Place], wanted: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Streams [T, S, D] of the new tokens of each sequence, and logits [N, V] of the wanted rows."""
        return step.run_step(self._backbone, self._store, _spans(tokens, cached, places), wanted)

    def predict(
        self,
        x_TSD: Tensor,
        tokens: Sequence[Sequence[int]],
        cached: Sequence[int],
        places: Sequence[Place],
        wanted: Sequence[int],
    ) -> Tensor:
        """Logits [N, V] of the prediction block, from the backbone's streams and the token after each."""
        assert self._predictor is not None
        assert self._prediction_store is not None
        spans = _spans(tokens, cached, places)
        return step.run_step(self._predictor, self._prediction_store, spans, wanted, x_TSD)[1]


def misplaced(model: Transformer, store: CacheStore, predict: bool) -> str | None:
    """Why the layers of a changed model do not fit the cache that was made for it. None = they do."""
    places: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, Attention):
            continue
        index = module.spec.index
        if index in places:
            return f"{places[index]} and {name} keep their rows in the same place: spec.index is {index} in both"
        if not 0 <= index < len(store.layers) or store.layers[index].spec != module.spec:
            return f"{name} has no place in the cache (spec.index {index}): a changed plan needs a new engine"
        places[index] = name
    if predict and not model.mtp:
        return "the prediction block that drafts is gone"
    return None


def unusual(model: Transformer) -> str | None:
    """Why a model must be run op by op: something in it is not what its configuration says. None = all is."""
    reason = alien(model)
    if reason is not None:
        return reason
    if type(model.rotary) is not RotaryTables:
        return f"the rotary tables are a {type(model.rotary).__qualname__}"
    for name, module in model.named_modules():
        different = _difference(model, module)
        if different is not None:
            return f"{name or 'the model'}: {different}"
    wide = [m for a in model.modules() if isinstance(a, Compressor) for m in (a.wkv, a.wgate)]
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            dtype = torch.float32 if module is model.head or module in wide else model.numerics.activations
            if module.dtype != dtype:
                return f"{name}: computed in {module.dtype}, not {dtype}"
    return None


def _difference(model: Transformer, module: torch.nn.Module) -> str | None:
    """What one module has set otherwise than the model it is in."""
    c = model.config
    if isinstance(module, KernelModule) and module.impl not in (None, "native"):
        return f"it asks for {module.impl!r} kernels"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "it scales what it looks up"
    wanted: dict[str, object] = {"config": c, "eps": c.rms_norm_eps, "limit": c.swiglu_limit}
    if not isinstance(module, RMSNorm | Linear):
        wanted["numerics"] = model.numerics
    for name, value in wanted.items():
        if name in vars(module) and vars(module)[name] != value:
            return f"{name} is {vars(module)[name]!r}, not {value!r}" if name != "config" else "another config"
    if isinstance(module, Block) and module.attn.spec != module.spec:
        return "its attention has another plan"
    if isinstance(module, Attention):
        parts = [getattr(module, name, None) for name in ("compressor", "indexer")]
        if any(part is not None and part.ratio != module.spec.ratio for part in parts):
            return "its compressor has another ratio"
    return None


def _spans(tokens: Sequence[Sequence[int]], cached: Sequence[int], places: Sequence[Place]) -> list[step.Span]:
    return [
        step.Span(new, old, place.slot, place.pages, place.window_from, place.entries_from)
        for new, old, place in zip(tokens, cached, places, strict=True)
    ]


def _linear(layer: Linear) -> step.LinearWeight:
    return step.LinearWeight(layer.weight, layer.scale)


def _compressor(layer: Compressor) -> step.CompressorWeights:
    return step.CompressorWeights(_linear(layer.wkv), _linear(layer.wgate), layer.ape, layer.norm.weight)


def _indexer(layer: Indexer) -> step.IndexerWeights:
    return step.IndexerWeights(_linear(layer.wq_b), _linear(layer.weights_proj), _compressor(layer.compressor))


def _connection(owner: Block | MultiTokenPredictor | Transformer, name: str, norm: RMSNorm) -> step.Connection:
    fn_XE, scale, base_X = (getattr(owner, f"hc_{name}_{part}") for part in ("fn", "scale", "base"))
    return step.Connection(fn_XE, scale, base_X, norm.weight)


def _layer(block: Block) -> step.LayerWeights:
    attention, mixture = block.attn, block.ffn
    assert isinstance(attention, Attention)
    assert isinstance(mixture, MoE)
    compressor, indexer = getattr(attention, "compressor", None), getattr(attention, "indexer", None)
    return step.LayerWeights(
        ratio=block.spec.ratio,
        overlap=block.spec.overlap,
        attention=_connection(block, "attn", block.attn_norm),
        mixture=_connection(block, "ffn", block.ffn_norm),
        q_a=_linear(attention.wq_a),
        q_b=_linear(attention.wq_b),
        kv=_linear(attention.wkv),
        o_a=_linear(attention.wo_a),
        o_b=_linear(attention.wo_b),
        q_norm_L=attention.q_norm.weight,
        kv_norm_C=attention.kv_norm.weight,
        sink_H=attention.attn_sink,
        router_ED=mixture.gate.weight,
        bias_E=mixture.gate.bias,
        table_VK=mixture.gate.tid2eid,
        experts=mixture.weights(),
        compressor=None if compressor is None else _compressor(compressor),
        indexer=None if indexer is None else _indexer(indexer),
    )


def _model_of(model: Transformer, blocks: Sequence[Block], predictor: torch.nn.Module | None) -> step.StepModel:
    c, owner, prediction = model.config, model, None
    if predictor is not None:
        assert isinstance(predictor, MultiTokenPredictor)
        owner = predictor
        prediction = step.PredictionWeights(
            predictor.enorm.weight, predictor.hnorm.weight, _linear(predictor.e_proj), _linear(predictor.h_proj)
        )
    return step.StepModel(
        layers=[_layer(block) for block in blocks],
        embedding_VD=model.embed.weight,
        head=_connection(owner, "head", owner.norm),
        output_VD=_linear(model.head),
        plain_P=model.rotary.plain_P,
        long_P=model.rotary.long_P,
        simulate=model.numerics.simulate,
        streams=c.hc_mult,
        heads=c.num_attention_heads,
        head_dim=c.head_dim,
        groups=c.o_groups,
        window=c.sliding_window,
        index_heads=c.index_n_heads,
        index_dim=c.index_head_dim,
        index_topk=c.index_topk,
        per_token=c.num_experts_per_tok,
        iterations=c.hc_sinkhorn_iters,
        norm_eps=c.rms_norm_eps,
        connection_eps=c.hc_eps,
        limit=c.swiglu_limit,
        expert_scale=c.routed_scaling_factor,
        prediction=prediction,
    )


def _store_of(store: CacheStore, layers: Sequence) -> step.StepStore:
    made = [
        step.StoreLayer(
            layer.window_SWX.flatten(0, 1),
            layer.entries_MX,
            layer.index_MX,
            layer.tails["main"].flatten(0, 1) if "main" in layer.tails else None,
            layer.tails["index"].flatten(0, 1) if "index" in layer.tails else None,
        )
        for layer in layers
    ]
    return step.StepStore(made, store.slots.count, store.pages.count, store.spec.page_tokens)
