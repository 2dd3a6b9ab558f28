"""Runs the steps of a model as native calls, and gives the reason for models that it cannot run."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dsv4.cache import CacheStore, Place
from dsv4.engine.step.native import run_blocks, run_step
from dsv4.engine.step.pack import UnfitError, pack
from dsv4.kernels.native.places import ThreadPlaces
from dsv4.model.attention.compressor import Compressor
from dsv4.model.attention.shared import Attention
from dsv4.model.block import Block
from dsv4.model.layers import KernelModule, Linear, RMSNorm, walk
from dsv4.model.rope import RotaryTables
from dsv4.model.transformer import Transformer
from dsv4.model.watch import alien


class FusedStep:
    """Runs each step of one model on one store as one native call. Raises UnfitError with the reason if that is not
    possible. predict: a step also writes the context rows of the draft head, if the model has one. counts: by layer,
    an int64 [E] to which a step adds how many tokens each expert got. places: where the threads run.

    The weights may change in place. When a tensor was moved or replaced, or a module was changed, a new FusedStep is
    needed; `dsv4.model.watch.Watch` notices such changes.
    """

    def __init__(
        self,
        model: Transformer,
        store: CacheStore,
        *,
        predict: bool = True,
        counts: Mapping[int, Tensor] | None = None,
        places: ThreadPlaces | None = None,
    ) -> None:
        reason = f"the model is on {model.device}, native code runs on the CPU" if model.device.type != "cpu" else None
        reason = reason or unusual(model)
        if reason is not None:
            raise UnfitError(reason)
        layers = [block for block in model.layers if isinstance(block, Block)]
        context = predict and bool(model.stages)
        self._backbone = pack(model, layers, store, context=context, counts=counts or {}, places=places)
        self._predictors = [pack(model, [predictor], store, places=places) for predictor in model.predictors[:1]]
        self._stages = pack(model, model.stages, store, places=places) if predict and model.stages else None

    def run(
        self,
        tokens: Sequence[Sequence[int]],
        cached: Sequence[int],
        places: Sequence[Place],
        wanted: Sequence[int],
        meanwhile: Callable[[], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Streams [T, S, D] of the new tokens of each sequence, and logits [N, V] of the wanted rows. meanwhile: as in
        run_step."""
        return run_step(self._backbone, tokens, cached, places, wanted, meanwhile=meanwhile)

    def predict(
        self,
        x_TSD: Tensor,
        tokens: Sequence[Sequence[int]],
        cached: Sequence[int],
        places: Sequence[Place],
        wanted: Sequence[int],
    ) -> Tensor:
        """Logits [N, V] of the prediction block, from the streams of the backbone and the token after each position."""
        (predictor,) = self._predictors
        return run_step(predictor, tokens, cached, places, wanted, x_TSD)[1]

    def draft(
        self, tokens: Sequence[Sequence[int]], cached: Sequence[int], places: Sequence[Place]
    ) -> tuple[Tensor, Tensor]:
        """Collapsed rows [N, D] of draft blocks, one for each sequence, and their logits [N, V]."""
        if self._stages is None:
            raise RuntimeError("this step was made without the draft head")
        return run_blocks(self._stages, tokens, cached, places)


def misplaced(model: Transformer, store: CacheStore, predict: bool) -> str | None:
    """The reason why the layers of a changed model do not fit its cache. None = they fit."""
    places: dict[int, str] = {}
    for name, module in walk(model):
        if not isinstance(module, Attention):
            continue
        index = module.spec.index
        if index in places:
            return f"{places[index]} and {name} keep their rows in the same place: spec.index is {index} in both"
        if not 0 <= index < len(store.layers) or store.layers[index].spec != module.spec:
            return f"{name} has no place in the cache (spec.index {index}): a changed plan needs a new engine"
        places[index] = name
    if predict and not model.mtp:
        return "the prediction block or draft head was removed, and the engine needs it for drafts"
    return None


def unusual(model: Transformer) -> str | None:
    """The reason why a model must run op by op: a part that differs from its configuration. None = no part differs."""
    reason = alien(model)
    if reason is not None:
        return reason
    if type(model.rotary) is not RotaryTables:
        return f"the rotary tables are a {type(model.rotary).__qualname__}"
    for name, module in walk(model):
        different = _difference(model, module)
        if different is not None:
            return f"{name or 'the model'}: {different}"
    wide = [m for _, a in walk(model) if isinstance(a, Compressor) for m in (a.wkv, a.wgate)]
    wide += [m for stage in model.stages[-1:] for m in (stage.markov_head.markov_w2, stage.confidence_head.proj)]
    for name, module in walk(model):
        if isinstance(module, Linear):
            dtype = torch.float32 if module is model.head or module in wide else model.numerics.activations
            if module.dtype != dtype:
                return f"{name}: computed in {module.dtype}, not {dtype}"
    return None


def _difference(model: Transformer, module: torch.nn.Module) -> str | None:
    """The setting of one module that differs from its model. None = there is none."""
    c = model.config
    if isinstance(module, KernelModule) and module.impl not in (None, "native"):
        return f"it runs on {module.impl!r} kernels"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "it rescales the rows that it looks up (max_norm)"
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
