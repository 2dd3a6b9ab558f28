"""Compressed sparse attention: the window, and the entries of 4 tokens each that the indexer picks (report 2.3.1).

T tokens, D hidden size, L query latent, C head dim, N finished entries, I indexer dim, J indexer heads, M buffer rows,
K chosen entries.
"""

from torch import Tensor

from dsv4.config import LayerSpec, ModelConfig
from dsv4.kernels import quant
from dsv4.kernels.indexer import index_topk
from dsv4.kernels.rope import apply_rope
from dsv4.kernels.sparse_attention import KeySet, PageTable
from dsv4.model.attention.compressor import Compressor
from dsv4.model.attention.shared import Attention
from dsv4.model.inputs import KeyBuffer, LayerCache
from dsv4.model.layers import Layer, Linear, Numerics
from dsv4.model.step import Step


class Indexer(Layer):
    """Scores entries with small keys of its own compressor (eqs 13-17)."""

    def __init__(self, config: ModelConfig, ratio: int, numerics: Numerics) -> None:
        super().__init__()
        self.config, self.ratio, self.numerics = config, ratio, numerics
        heads, dim = config.index_n_heads, config.index_head_dim
        self.wq_b = Linear(config.q_lora_rank, heads * dim, numerics.activations)
        self.weights_proj = Linear(config.hidden_size, heads, numerics.activations)
        self.compressor = Compressor(config, ratio, dim, numerics)

    def queries(self, x_TD: Tensor, latent_TL: Tensor, rotation_2TP: Tensor) -> tuple[Tensor, Tensor]:
        """q_TJI and the head weights w_TJ, with both scales folded in (eqs 14-15)."""
        heads, dim = self.config.index_n_heads, self.config.index_head_dim
        q_TJI = apply_rope(self.wq_b(latent_TL).unflatten(-1, (heads, dim)), rotation_2TP, impl=self.impl)
        q_TJI = self._rotate(q_TJI)
        return q_TJI, self.weights_proj(x_TD) * (dim**-0.5 * heads**-0.5)

    def remember(self, x_TD: Tensor, step: Step, cache: LayerCache) -> tuple[Tensor, PageTable]:
        """Add this step's keys; returns all keys [M, I] and where each sequence's lie."""
        entries_NI = self._rotate(self.compressor(x_TD, step, cache, "index"))
        return cache.append_index(entries_NI, step.sequences.blocks[self.ratio])

    def choose(self, x_TD: Tensor, latent_TL: Tensor, step: Step, index: tuple[Tensor, PageTable]) -> Tensor:
        """The chosen entries of each token, chosen_TK, -1 = none."""
        blocks = step.sequences.blocks[self.ratio]
        keys_MI, pages = index
        q_TJI, w_TJ = self.queries(x_TD, latent_TL, step.rotations.of_tokens(self.ratio))
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
        return quant.simulate_fp4(quant.hadamard(x)) if self.numerics.simulate else x


class CompressedSparseAttention(Attention):
    """Top-k of the 4:1 compressed entries beside the window, in one softmax."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, numerics: Numerics) -> None:
        super().__init__(config, spec, numerics)
        self.compressor = Compressor(config, spec.ratio, config.head_dim, numerics)
        self.indexer = Indexer(config, spec.ratio, numerics)

    def keys(self, x_TD: Tensor, latent_TL: Tensor, kv_TC: Tensor, step: Step) -> tuple[KeyBuffer, KeySet]:
        cache, blocks = step.cache.layer(self.spec.index), step.sequences.blocks[self.spec.ratio]
        borders = step.sequences.borders
        entries_NC = self.store(self.compressor(x_TD, step, cache, "main"))
        index = self.indexer.remember(x_TD, step, cache)
        buffer = cache.append(kv_TC, entries_NC, blocks)
        assert buffer.pages is not None
        if blocks.longest <= self.config.index_topk:
            # the best k of at most k entries are all of them: a range, and nothing to score
            return buffer, KeySet(buffer.window_T2, borders, blocks.visible_T, buffer.pages, blocks.longest)
        chosen_TK = self.indexer.choose(x_TD, latent_TL, step, index)
        return buffer, KeySet(buffer.window_T2, borders, chosen_TK=buffer.pages.rows(chosen_TK))
