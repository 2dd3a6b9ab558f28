"""DSpark, the draft head of the final weights (arXiv 2607.05147): a few sliding-window blocks that propose several
tokens at once from the output of some layers.

A *context row* of a stage is the key of a processed token, made of the tapped layers' output. A *draft block* is the
last sampled token and rows of noise after it: each of its rows reads the context rows before the block and all rows of
the block, and proposes the token after its own. The block's keys are not kept.

Legend: T tokens, S streams, D hidden size, V vocabulary, r rank, C head dim, R gathered rows, W window rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsv4.config import DSpark, LayerSpec, ModelConfig
from dsv4.model.block import Block
from dsv4.model.inputs import KeyBuffer
from dsv4.model.layers import KernelModule, Linear, Numerics, RMSNorm


class MarkovHead(KernelModule):
    """What the token before says about the next one: a bias of low rank on its logits. Computes in fp32."""

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(config.vocab_size, rank)
        self.markov_w2 = Linear(rank, config.vocab_size)

    def forward(self, previous_T: Tensor) -> tuple[Tensor, Tensor]:
        """The token's embedding [T, r] and the bias [T, V]."""
        embedded_Tr = self.markov_w1(previous_T).float()
        return embedded_Tr, self.markov_w2(embedded_Tr)


class ConfidenceHead(KernelModule):
    """The logit of the probability that a draft is accepted, if all drafts before it are. Computes in fp32."""

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        self.proj = Linear(config.hidden_size + rank, 1)

    def forward(self, row_TD: Tensor, embedded_Tr: Tensor) -> Tensor:
        """[T] from the collapsed rows, before the norm, and the embedding of the token before each draft."""
        return self.proj(torch.cat([row_TD.float(), embedded_Tr], dim=1)).squeeze(1)


class DraftStage(Block):
    """One block of the draft head. Only the first has the way in, only the last the way out."""

    main_proj: Linear
    main_norm: RMSNorm
    norm: RMSNorm
    markov_head: MarkovHead
    confidence_head: ConfidenceHead

    def __init__(
        self,
        config: ModelConfig,
        spec: LayerSpec,
        numerics: Numerics,
        head: DSpark,
        *,
        stored_experts: bool = False,
    ) -> None:
        super().__init__(config, spec, numerics, stored_experts=stored_experts)
        dim, rank = config.hidden_size, head.markov_rank
        if spec == config.draft_layers[0]:
            self.main_proj = Linear(len(head.target_layer_ids) * dim, dim, numerics.activations)
            self.main_norm = RMSNorm(dim, config.rms_norm_eps)
        if spec == config.draft_layers[-1]:
            self.norm = RMSNorm(dim, config.rms_norm_eps)
            self.hc_head_fn = nn.Parameter(torch.zeros(config.hc_mult, config.hc_mult * dim))
            self.hc_head_base = nn.Parameter(torch.zeros(config.hc_mult))
            self.hc_head_scale = nn.Parameter(torch.zeros(1))
            self.markov_head = MarkovHead(config, rank)
            self.confidence_head = ConfidenceHead(config, rank)


def stream_mean(x_TSD: Tensor) -> Tensor:
    """A tapped layer's output: the mean of its streams, [T, D]; added in fp32 from the first to the last, rounded
    once."""
    total_TD = x_TSD[:, 0].float()
    for stream in range(1, x_TSD.shape[1]):
        total_TD = total_TD + x_TSD[:, stream].float()
    return (total_TD * (1 / x_TSD.shape[1])).to(x_TSD.dtype)


class BlockKeys:
    """Which keys the rows of some draft blocks read: context rows, then the rows of their own block, all of them.

    contexts: for each block, the numbers of its context rows, in order of their positions. rows: of a block.
    """

    def __init__(self, contexts: Sequence[Sequence[int]], rows: int, device: torch.device | str = "cpu") -> None:
        context, order, ranges, start = [], [], [], 0
        total = sum(map(len, contexts))
        for block, numbers in enumerate(contexts):
            order += [*range(len(context), len(context) + len(numbers))]
            order += [*range(total + block * rows, total + (block + 1) * rows)]
            context += numbers
            end = start + len(numbers) + rows
            ranges += [[start, end]] * rows
            start = end
        self.context_R = torch.tensor(context, dtype=torch.int64, device=device)
        self._order_W = torch.tensor(order, dtype=torch.int64, device=device)
        self._window_T2 = torch.tensor(ranges, dtype=torch.int64, device=device)

    def join(self, context_RC: Tensor, block_TC: Tensor) -> KeyBuffer:
        """The keys of a stage. context_RC: the context rows `context_R` of it."""
        rows_WC = torch.cat([context_RC, block_TC]).index_select(0, self._order_W)
        return KeyBuffer(rows_WC, self._window_T2, None)
