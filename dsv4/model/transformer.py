"""Read this file first. DeepSeek-V4: embedding, blocks on four residual streams, collapse, norm, head (report 2).

Legend: T tokens, S streams, D hidden size, O tapped dims, C head dim, V vocabulary.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsv4.config import ModelConfig
from dsv4.model.block import Block
from dsv4.model.dspark import DraftStage, stream_mean
from dsv4.model.hyper_connection import collapse_head
from dsv4.model.inputs import FreshCache, ModelCache, Sequences
from dsv4.model.layers import FP32, KernelModule, LayerList, Linear, Numerics, RMSNorm, walk
from dsv4.model.mtp import MultiTokenPredictor
from dsv4.model.rope import RotaryTables
from dsv4.model.step import PLAIN, Observer, Regime, Step


class Transformer(KernelModule):
    """The model. Parameter names are the released ones; weights are uninitialised until loaded or `init_weights`.

    numerics: how activations are held (FP32, BF16, RELEASE). impl: which kernels run: None = the best, "torch" =
    the best in plain torch, "reference", or "native" = native ones or an error. stored_experts: for loading without
    training: routed experts are tables, and modules only when something asks for them.
    """

    def __init__(
        self,
        config: ModelConfig,
        numerics: Numerics = FP32,
        impl: str | None = None,
        *,
        stored_experts: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.numerics = config, numerics
        # NOTE: not drawn by nn.Embedding: on the meta device its `normal_` imports the whole compiler, a second's work
        rows = torch.empty(config.vocab_size, config.hidden_size, dtype=numerics.activations)
        self.embed = nn.Embedding.from_pretrained(rows, freeze=False)
        self.layers = LayerList(Block(config, spec, numerics, stored_experts=stored_experts) for spec in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size)
        self.hc_head_fn = nn.Parameter(torch.zeros(config.hc_mult, config.hc_mult * config.hidden_size))
        self.hc_head_base = nn.Parameter(torch.zeros(config.hc_mult))
        self.hc_head_scale = nn.Parameter(torch.zeros(1))
        self.mtp = LayerList(
            MultiTokenPredictor(config, spec, numerics, stored_experts=stored_experts) for spec in config.mtp_layers
        )
        if config.dspark is not None:
            self.mtp.extend(
                DraftStage(config, spec, numerics, config.dspark, stored_experts=stored_experts)
                for spec in config.draft_layers
            )
        self.use_yarn(True)
        for _, module in walk(self):
            if isinstance(module, KernelModule):
                module.impl = impl

    @property
    def blocks(self) -> list[Block]:
        """Every block: the layers, then those of the prediction or the draft head."""
        return cast("list[Block]", [*self.layers, *self.mtp])

    @property
    def predictors(self) -> list[MultiTokenPredictor]:
        """The blocks of the prediction."""
        return [block for block in self.mtp if isinstance(block, MultiTokenPredictor)]

    @property
    def stages(self) -> list[DraftStage]:
        """The stages of the draft head (DSpark)."""
        return [block for block in self.mtp if isinstance(block, DraftStage)]

    @property
    def device(self) -> torch.device:
        """Where its tensors are; inputs must be there too."""
        return self.hc_head_fn.device

    def use_yarn(self, on: bool) -> None:
        """Scale the long-range rotary table by the config's YaRN, or leave it unscaled (early training stages)."""
        self.rotary = RotaryTables(self.config, yarn=on)

    def pack(self, lengths: list[int], cached: list[int] | None = None) -> Sequences:
        """Sequences laid out for this model's compression ratios, on its device."""
        return Sequences.pack(lengths, self.config.compressor_ratios, cached, self.device)

    def hidden(
        self,
        tokens_T: Tensor,
        sequences: Sequences,
        cache: ModelCache | None = None,
        observer: Observer | None = None,
        regime: Regime = PLAIN,
        taps: list[Tensor] | None = None,
    ) -> Tensor:
        """The residual streams after the last block, [T, S, D]. Without a cache, sequences start fresh. taps: a list
        that gets the rows [T, D] of each layer that the draft head reads."""
        step = self._step(tokens_T, sequences, cache, observer, regime)
        x_TSD = self.embed(tokens_T)[:, None].expand(-1, self.config.hc_mult, -1)
        for block in self.layers:
            x_TSD = _run(block, step, x_TSD, step)
            if taps is not None and self._tapped(block):
                taps.append(stream_mean(x_TSD))
        return x_TSD

    def head_rows(self, x_TSD: Tensor) -> Tensor:
        """The head's input: collapsed and normalised rows of `hidden`, [T, D] fp32."""
        x_TD = collapse_head(x_TSD, self.hc_head_fn, self.hc_head_scale, self.hc_head_base, self.config, self.impl)
        return self.norm(x_TD).float()

    def logits(self, x_TSD: Tensor) -> Tensor:
        """Next-token logits [T, V] in fp32 of some rows of `hidden`. Give only the rows you need."""
        return self.head(self.head_rows(x_TSD))

    def mtp_hidden(
        self,
        x_TSD: Tensor,
        next_tokens_T: Tensor,
        sequences: Sequences,
        cache: ModelCache | None = None,
        observer: Observer | None = None,
        regime: Regime = PLAIN,
    ) -> Tensor:
        """Streams of the prediction block from `hidden` rows and the token that follows each, [T, S, D]."""
        step = self._step(next_tokens_T, sequences, cache, observer, regime)
        return _run(self._predictor().predict, step, self.embed(next_tokens_T), x_TSD, step)

    def mtp_head_rows(self, x_TSD: Tensor) -> Tensor:
        """`head_rows` of `mtp_hidden`, [T, D] fp32."""
        mtp = self._predictor()
        x_TD = collapse_head(x_TSD, mtp.hc_head_fn, mtp.hc_head_scale, mtp.hc_head_base, self.config, self.impl)
        return mtp.norm(x_TD).float()

    def mtp_logits(self, x_TSD: Tensor) -> Tensor:
        """Logits [T, V] of the token after next, in fp32, from `mtp_hidden` rows. Embedding and head are shared."""
        return self.head(self.mtp_head_rows(x_TSD))

    def draft_context(self, tap_TO: Tensor, positions_T: Tensor) -> list[Tensor]:
        """The context rows [T, C] of each draft stage, from the tapped rows of `hidden`, joined to [T, O]."""
        first, *_ = self.stages
        context_TD = first.main_norm(first.main_proj(tap_TO))
        rotation_2TP = self.rotary.plain(positions_T)
        return [stage.attn.window_rows(context_TD, rotation_2TP) for stage in self.stages]

    def draft_hidden(
        self,
        tokens_T: Tensor,
        sequences: Sequences,
        cache: ModelCache,
        observer: Observer | None = None,
        regime: Regime = PLAIN,
    ) -> Tensor:
        """Streams [T, S, D] of draft blocks: each sequence is one block. The cache gives every row the context rows and
        the rows of its block (`dspark.BlockKeys`)."""
        step = self._step(tokens_T, sequences, cache, observer, regime)
        x_TSD = self.embed(tokens_T)[:, None].expand(-1, self.config.hc_mult, -1)
        for stage in self.stages:
            x_TSD = _run(stage, step, x_TSD, step)
        return x_TSD

    def draft_rows(self, x_TSD: Tensor) -> tuple[Tensor, Tensor]:
        """Collapsed rows of `draft_hidden` [T, D] for the confidence, and the head's input [T, D] fp32 made of them."""
        *_, last = self.stages
        x_TD = collapse_head(x_TSD, last.hc_head_fn, last.hc_head_scale, last.hc_head_base, self.config, self.impl)
        return x_TD, last.norm(x_TD).float()

    def _tapped(self, block: nn.Module) -> bool:
        dspark = self.config.dspark
        return dspark is not None and isinstance(block, Block) and block.spec.index in dspark.target_layer_ids

    def _predictor(self) -> MultiTokenPredictor:
        if not self.predictors:
            raise ValueError("this model has no prediction block (num_nextn_predict_layers is 0)")
        return self.predictors[0]

    def _step(
        self,
        tokens_T: Tensor,
        sequences: Sequences,
        cache: ModelCache | None,
        observer: Observer | None,
        regime: Regime,
    ) -> Step:
        cache = cache or FreshCache(sequences, self.config.sliding_window)
        return Step(tokens_T, sequences, self.rotary.step(sequences), cache, observer, regime)


def _run(part: Callable[..., Tensor], step: Step, *inputs: object) -> Tensor:
    """Run a part of the model; with `regime.recompute` only its inputs are kept for the backward pass."""
    if not (step.regime.recompute and torch.is_grad_enabled()):
        return part(*inputs)
    # NOTE: nothing in the model draws random numbers
    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
