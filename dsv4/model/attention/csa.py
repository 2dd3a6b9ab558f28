"""Compressed sparse attention: the window, and the entries of 4 tokens each that the indexer picks (report 2.3.1).

Legend: T tokens, D hidden size, L query latent, H heads, C head dim, N finished entries, I indexer dim, J indexer
heads, M entry rows, W window rows, K choices per token.
"""

import torch
from torch import Tensor, nn

from dsv4.config import LayerSpec, ModelConfig
from dsv4.kernels import quant
from dsv4.kernels.indexer import index_topk
from dsv4.kernels.indexer_loss import IndexedAttention
from dsv4.kernels.rope import apply_rope
from dsv4.kernels.sparse_attention import ChosenEntries, KeySet, PageTable, Prefix
from dsv4.model.attention.compressor import Compressor
from dsv4.model.attention.shared import Attention
from dsv4.model.inputs import Blocks, KeyBuffer, LayerCache
from dsv4.model.layers import KernelModule, Linear, Numerics, straight_through
from dsv4.model.step import Step


class Indexer(KernelModule):
    """Scores entries with small keys of its own compressor (eqs 13-17)."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, numerics: Numerics) -> None:
        super().__init__()
        self.config, self.ratio, self.numerics = config, spec.ratio, numerics
        heads, dim = config.index_n_heads, config.index_head_dim
        self.wq_b = Linear(config.q_lora_rank, heads * dim, numerics.activations)
        self.weights_proj = Linear(config.hidden_size, heads, numerics.activations)
        self.compressor = Compressor(config, spec, dim, numerics)

    def queries(self, x_TD: Tensor, latent_TL: Tensor, rotation_2TP: Tensor) -> tuple[Tensor, Tensor]:
        """q_TJI and the head weights w_TJ, with both scales folded in (eqs 14-15)."""
        heads, dim = self.config.index_n_heads, self.config.index_head_dim
        q_TJI = apply_rope(self.wq_b(latent_TL).unflatten(-1, (heads, dim)), rotation_2TP, impl=self.impl)
        q_TJI = self._rotate(q_TJI)
        return q_TJI, self.weights_proj(x_TD) * (dim**-0.5 * heads**-0.5)

    def remember(self, x_TD: Tensor, step: Step, cache: LayerCache) -> tuple[Tensor, PageTable]:
        """Append this step's keys; returns all keys [M, I] and the rows of each sequence."""
        entries_NI = self._rotate(self.compressor(x_TD, step, cache, "index"))
        return cache.append_index(entries_NI, step.sequences.blocks[self.ratio])

    @torch.no_grad()
    def choose(self, queries: tuple[Tensor, Tensor], step: Step, index: tuple[Tensor, PageTable]) -> Tensor:
        """The chosen entries of each token, chosen_TK, -1 = none. `index` is what `remember` returned."""
        blocks = step.sequences.blocks[self.ratio]
        q_TJI, w_TJ = queries
        keys_MI, pages = index
        return index_topk(
            q_TJI,
            w_TJ,
            keys_MI,
            pages,
            blocks.visible_T,
            blocks.longest,
            self.config.index_topk,
            runs=step.sequences.borders,
            impl=self.impl,
        )

    def _rotate(self, x: Tensor) -> Tensor:
        """Release numerics: Hadamard rotation, then fp4. Without fp4 the rotation changes no score."""
        return straight_through(quant.simulate_fp4, quant.hadamard(x)) if self.numerics.simulate else x


class CompressedSparseAttention(Attention):
    """Top-k of the 4:1 compressed entries beside the window, in one softmax."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, numerics: Numerics) -> None:
        super().__init__(config, spec, numerics)
        self.compressor = Compressor(config, spec, config.head_dim, numerics)
        self.indexer = Indexer(config, spec, numerics)

    def keys(
        self, x_TD: Tensor, latent_TL: Tensor, q_THC: Tensor, kv_TC: Tensor, step: Step
    ) -> tuple[KeyBuffer, KeySet]:
        cache, blocks = step.cache.layer(self.spec.index), step.sequences.blocks[self.spec.ratio]
        borders, regime = step.sequences.borders, step.regime
        entries_NC = self.store(self.compressor(x_TD, step, cache, "main"))
        # the indexer learns from a loss of its own: no gradient leaves it, and none reaches it through its choice
        x_TD, latent_TL = x_TD.detach(), latent_TL.detach()
        index = self.indexer.remember(x_TD, step, cache)
        buffer = cache.append(kv_TC, entries_NC, blocks)
        given_TK = None if regime.entries is None else regime.entries.get(self.spec.index)
        # the best k of at most k entries are all of them: a range, and nothing to score
        everything = given_TK is None and (regime.dense or blocks.longest <= self.config.index_topk)
        read: Prefix | ChosenEntries = Prefix(blocks.visible_T, buffer.compressed.pages, blocks.longest)
        if everything and regime.indexed is None:
            return buffer, KeySet(buffer.window_T2, borders, read)
        queries, chosen_TK = self.indexer.queries(x_TD, latent_TL, step.rotations.of_tokens(self.spec.ratio)), None
        if not everything:
            chosen_TK = self._chosen(given_TK, queries, step, index)
            read = ChosenEntries(buffer.compressed.pages.rows(chosen_TK))
        keys = KeySet(buffer.window_T2, borders, read)
        if regime.indexed is not None:
            regime.indexed(self._seen(queries, index[0], chosen_TK, blocks, q_THC, buffer, keys))
        return buffer, keys

    def _chosen(
        self, given_TK: Tensor | None, queries: tuple[Tensor, Tensor], step: Step, index: tuple[Tensor, PageTable]
    ) -> Tensor:
        """The given entries; the indexer's choice where there are none, chosen_TK."""
        if given_TK is None:
            return self.indexer.choose(queries, step, index)
        blocks = step.sequences.blocks[self.spec.ratio]
        open_T1 = ((given_TK < 0).all(dim=1) & (blocks.visible_T > 0))[:, None]
        if not bool(open_T1.any()):
            return given_TK.to(torch.int64)
        own_TK = self.indexer.choose(queries, step, index)
        width = max(own_TK.shape[1], given_TK.shape[1])
        own_TK, given_TK = (
            nn.functional.pad(part, (0, width - part.shape[1]), value=-1) for part in (own_TK, given_TK.to(torch.int64))
        )
        return torch.where(open_T1, own_TK, given_TK)

    def _seen(
        self,
        queries: tuple[Tensor, Tensor],
        index_MI: Tensor,
        chosen_TK: Tensor | None,
        blocks: Blocks,
        q_THC: Tensor,
        buffer: KeyBuffer,
        keys: KeySet,
    ) -> IndexedAttention:
        return IndexedAttention(
            self.spec.index,
            *queries,
            index_MI,
            buffer.compressed.pages,
            blocks.visible_T,
            chosen_TK,
            q_THC.detach(),
            buffer.window_WC.detach(),
            buffer.compressed.rows_MC.detach(),
            keys,
            self.attn_sink.detach(),
            self.config.head_dim**-0.5,
        )
