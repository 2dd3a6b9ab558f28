"""Each attention layer against a brute force written from the report (2.3), one sequence, in float64."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dsv4.config import ModelConfig
from dsv4.kernels.rope import frequencies
from dsv4.model.attention import Attention, CompressedSparseAttention
from dsv4.model.attention.compressor import Compressor
from dsv4.model.inputs import FreshCache, Sequences
from dsv4.model.rope import RotaryTables
from dsv4.model.step import Step
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model

TOKENS = 140
# layer of the tiny plan by kind; "csa" has 35 entries and keeps 8, HCA's block of 128 has one, of 16 eight
LAYERS = {"swa": 0, "csa": 1, "hca": 2}


def config_of(kind: str) -> ModelConfig:
    if kind == "hca16":
        return tiny_config(compress_ratios=(0, 4, 16, 4, 0))
    return tiny_config(sliding_window=24) if kind == "swa" else tiny_config()


def layer_of(kind: str) -> tuple[Attention, Transformer]:
    model = tiny_model(config_of(kind), seed=3)
    block = model.layers[LAYERS[kind[:3]]]
    return block.attn, model  # type: ignore[return-value]


def run(attn: Attention, model: Transformer, x_TD: Tensor, shift: int = 0) -> Tensor:
    """The layer on fresh sequences; `shift` moves every position, but not what is visible."""
    sequences = model.pack([len(x_TD)])
    moved: Sequences = replace(
        sequences,
        positions_T=sequences.positions_T + shift,
        blocks={ratio: replace(b, position_N=b.position_N + shift) for ratio, b in sequences.blocks.items()},
    )
    rotations = RotaryTables(model.config).step(moved)
    tokens_T = torch.zeros(len(x_TD), dtype=torch.int64)
    cache = FreshCache(sequences, model.config.sliding_window)
    return attn(x_TD, Step(tokens_T, sequences, rotations, cache))


def norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    y = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return y if weight is None else y * weight.double()


class BruteForce:
    """One attention layer, token by token, entry by entry."""

    def __init__(self, attn: Attention, x_TD: Tensor) -> None:
        self.attn, self.config, self.ratio = attn, attn.config, attn.spec.ratio
        c = self.config
        theta, yarn = (c.compress_rope_theta, c.yarn) if self.ratio else (c.rope_theta, None)
        self.frequency_P = frequencies(c.qk_rope_head_dim, theta, yarn).double()
        self.x_TD = x_TD.double()

    def turn(self, x: Tensor, position: int) -> Tensor:
        """RoPE: pairs of neighbours in the last dims, as complex numbers."""
        split = x.shape[-1] - self.config.qk_rope_head_dim
        pairs = torch.view_as_complex(x[..., split:].unflatten(-1, (-1, 2)).contiguous())
        angle = self.frequency_P * position
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
        return torch.cat([x[..., :split], turned], dim=-1)

    def entries(self, compressor: Compressor) -> list[Tensor]:
        """Eqs 9-12 (own block: second half of the columns, block before: first half) or 20-23."""
        m, out = self.ratio, []
        kv, z = (self.x_TD @ w.weight.double().T for w in (compressor.wkv, compressor.wgate))
        bias, dim = compressor.ape.double(), compressor.norm.weight.shape[0]
        for i in range(len(self.x_TD) // m):
            own, before = slice(m * i, m * (i + 1)), slice(m * (i - 1), m * i)
            score, value = z[own, -dim:] + bias[:, -dim:], kv[own, -dim:]
            if m == 4 and i:
                score = torch.cat([score, z[before, :dim] + bias[:, :dim]])
                value = torch.cat([value, kv[before, :dim]])
            pooled = (score.softmax(0) * value).sum(0)
            out.append(self.turn(norm(pooled, compressor.norm.weight), m * i))
        return out

    def chosen(self, t: int, latent: Tensor, keys: list[Tensor]) -> list[int]:
        """Eqs 14-17: the best top-k of the entries whose last token is not after t."""
        visible = (t + 1) // self.ratio
        if not isinstance(self.attn, CompressedSparseAttention):
            return list(range(visible))
        indexer = self.attn.indexer
        q = self.turn((indexer.wq_b.weight.double() @ latent).view(self.config.index_n_heads, -1), t)
        weight = indexer.weights_proj.weight.double() @ self.x_TD[t]
        score = [
            sum(w * max(0.0, float(qh @ keys[s])) for w, qh in zip(weight, q, strict=True)) for s in range(visible)
        ]
        return sorted(range(visible), key=lambda s: (-float(score[s]), s))[: self.config.index_topk]

    def __call__(self) -> Tensor:
        a, c = self.attn, self.config
        entries = self.entries(a.compressor) if self.ratio else []  # type: ignore[attr-defined]
        keys = self.entries(a.indexer.compressor) if isinstance(a, CompressedSparseAttention) else []
        rows = [self.turn(norm(a.wkv.weight.double() @ x, a.kv_norm.weight), t) for t, x in enumerate(self.x_TD)]
        out = []
        for t, x in enumerate(self.x_TD):
            latent = norm(a.wq_a.weight.double() @ x, a.q_norm.weight)
            q_HC = self.turn(norm((a.wq_b.weight.double() @ latent).view(c.num_attention_heads, -1)), t)
            seen = rows[max(0, t - c.sliding_window + 1) : t + 1]
            seen = torch.stack(seen + [entries[s] for s in self.chosen(t, latent, keys)] if self.ratio else seen)
            weight_HR = (q_HC @ seen.T * c.head_dim**-0.5).exp()
            o_HC = weight_HR @ seen / (weight_HR.sum(1) + a.attn_sink.double().exp())[:, None]
            groups = self.turn(o_HC, -t).reshape(c.o_groups, -1)
            first = a.wo_a.weight.double().unflatten(0, (c.o_groups, -1))
            low = torch.cat([w @ o for w, o in zip(first, groups, strict=True)])
            out.append(a.wo_b.weight.double() @ low)
        return torch.stack(out)


@pytest.mark.parametrize("kind", ["swa", "csa", "hca", "hca16"])
def test_equals_the_brute_force(kind: str) -> None:
    attn, model = layer_of(kind)
    x_TD = torch.randn(TOKENS, model.config.hidden_size)
    with torch.no_grad():
        torch.testing.assert_close(run(attn, model, x_TD).double(), BruteForce(attn, x_TD)(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["swa", "csa", "hca16"])
@pytest.mark.parametrize("shift", [128, 4096])
def test_positions_shifted_by_128_change_nothing(kind: str, shift: int) -> None:
    """Only distances count: queries, keys, entries and the inverse rotation of the output use one table."""
    attn, model = layer_of(kind)
    x_TD = torch.randn(TOKENS, model.config.hidden_size)
    with torch.no_grad():
        torch.testing.assert_close(run(attn, model, x_TD, shift), run(attn, model, x_TD), atol=5e-4, rtol=0)


def _window(attn: Attention, x_TD: Tensor) -> Tensor:
    # what the oldest row of the last query's window changes
    x_TD = x_TD.clone()
    x_TD[-attn.config.sliding_window] += 1.0
    return x_TD


def _before_window(attn: Attention, x_TD: Tensor) -> Tensor:
    x_TD = x_TD.clone()
    x_TD[-attn.config.sliding_window - 1] += 1.0
    return x_TD


@pytest.mark.parametrize(("change", "seen"), [(_window, True), (_before_window, False)])
def test_the_window_ends_where_it_says(change: Callable[[Attention, Tensor], Tensor], seen: bool) -> None:
    attn, model = layer_of("swa")
    x_TD = torch.randn(TOKENS, model.config.hidden_size)
    with torch.no_grad():
        before, after = run(attn, model, x_TD)[-1], run(attn, model, change(attn, x_TD))[-1]
    assert torch.equal(before, after) is not seen


def test_sliding_layers_use_the_plain_table_and_others_the_long_one() -> None:
    model = tiny_model()
    rotations = RotaryTables(model.config).step(model.pack([9]))
    c = model.config
    positions = torch.arange(9.0)[:, None]
    plain = positions * frequencies(c.qk_rope_head_dim, c.rope_theta)
    long = positions * frequencies(c.qk_rope_head_dim, c.compress_rope_theta, c.yarn)
    for table, angles in (
        (rotations.of_tokens(0), plain),
        (rotations.of_tokens(4), long),
        (rotations.of_tokens(128), long),
        (rotations.entries[4], long[[0, 4]]),
    ):
        # cos of one number may differ in the last digit between tensors of different shapes
        torch.testing.assert_close(table, torch.stack([angles.cos(), angles.sin()]), atol=1e-6, rtol=0)
