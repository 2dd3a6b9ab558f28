"""The draft head (DSpark) against its definition, written out here row by row from the released tensors' names.

Legend: T tokens, S streams, D hidden size, H heads, C head dim, K rows of a block, V vocabulary, r rank.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4.model.attention.swa import SlidingWindowAttention
from dsv4.model.dspark import BlockKeys, stream_mean
from dsv4.model.layers import FP32, Numerics
from dsv4.model.transformer import Transformer
from dsv4.parameters import parameters
from dsv4.testing.tiny import tiny_draft_config, tiny_model
from tests.model.draft_context import ContextOnly

NOISE, BLOCK = 96, 5


def norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight


def rotate(x: Tensor, position: int, dims: int, back: bool = False) -> Tensor:
    """The last `dims` dims as neighbouring pairs, theta 10000, no YaRN."""
    angle = position / 10000.0 ** (torch.arange(0, dims, 2).double() / dims)
    turn = torch.polar(torch.ones_like(angle), -angle if back else angle)
    pairs = torch.view_as_complex(x[..., -dims:].double().unflatten(-1, (-1, 2)).contiguous()) * turn
    return torch.cat([x[..., :-dims], torch.view_as_real(pairs).flatten(-2).to(x.dtype)], dim=-1)


class Written:
    """The head as its description has it (DSpark, sections 2 and 3), for one block."""

    def __init__(self, model: Transformer) -> None:
        self.c, self.w = model.config, {n: p.double() for n, p in model.state_dict().items()}

    def key(self, x: Tensor, stage: int, position: int) -> Tensor:
        a = f"mtp.{stage}.attn."
        row = norm(self.w[a + "wkv.weight"] @ x, self.w[a + "kv_norm.weight"])
        return rotate(row, position, self.c.qk_rope_head_dim)

    def context(self, tap_TO: Tensor) -> list[list[Tensor]]:
        """The key of every token, for each stage."""
        m = [norm(self.w["mtp.0.main_proj.weight"] @ t, self.w["mtp.0.main_norm.weight"]) for t in tap_TO.double()]
        return [[self.key(row, s, at) for at, row in enumerate(m)] for s in range(self.c.draft_stages)]

    def connection(self, x_SD: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        S = self.c.hc_mult
        mixes = self.w[name + "_fn"] @ norm(x_SD.flatten(), None)
        scale, base = self.w[name + "_scale"], self.w[name + "_base"]
        pre = torch.sigmoid(mixes[:S] * scale[0] + base[:S]) + self.c.hc_eps
        post = 2 * torch.sigmoid(mixes[S : 2 * S] * scale[1] + base[S : 2 * S])
        comb = (mixes[2 * S :] * scale[2] + base[2 * S :]).view(S, S).softmax(-1) + self.c.hc_eps
        comb = comb / (comb.sum(0, keepdim=True) + self.c.hc_eps)
        for _ in range(self.c.hc_sinkhorn_iters - 1):
            comb = comb / (comb.sum(1, keepdim=True) + self.c.hc_eps)
            comb = comb / (comb.sum(0, keepdim=True) + self.c.hc_eps)
        return pre @ x_SD, post, comb

    def attention(self, rows: list[Tensor], stage: int, start: int, context: list[Tensor]) -> list[Tensor]:
        c, a = self.c, f"mtp.{stage}.attn."
        own = [self.key(row, stage, start + k) for k, row in enumerate(rows)]
        seen = torch.stack([*context[max(0, start - c.sliding_window) : start], *own])
        out = []
        for k, row in enumerate(rows):
            latent = norm(self.w[a + "wq_a.weight"] @ row, self.w[a + "q_norm.weight"])
            q_HC = norm((self.w[a + "wq_b.weight"] @ latent).view(c.num_attention_heads, -1), None)
            q_HC = rotate(q_HC, start + k, c.qk_rope_head_dim)
            score = torch.cat([q_HC @ seen.T / math.sqrt(c.head_dim), self.w[a + "attn_sink"][:, None]], dim=1)
            o_HC = rotate(score.softmax(1)[:, :-1] @ seen, start + k, c.qk_rope_head_dim, back=True)
            groups = o_HC.reshape(c.o_groups, -1)
            low = torch.cat([w @ g for w, g in zip(self.w[a + "wo_a.weight"].chunk(c.o_groups), groups, strict=True)])
            out.append(self.w[a + "wo_b.weight"] @ low)
        return out

    def expert(self, x: Tensor, name: str) -> Tensor:
        limit = self.c.swiglu_limit
        gate = (self.w[name + "w1.weight"] @ x).clamp(max=limit)
        up = (self.w[name + "w3.weight"] @ x).clamp(-limit, limit)
        return self.w[name + "w2.weight"] @ (F.silu(gate) * up)

    def mixture(self, x: Tensor, stage: int) -> Tensor:
        f = f"mtp.{stage}.ffn."
        score = F.softplus(self.w[f + "gate.weight"] @ x).sqrt()
        chosen = (score + self.w[f + "gate.bias"]).topk(self.c.num_experts_per_tok).indices
        weight = score[chosen] / score[chosen].sum() * self.c.routed_scaling_factor
        routed = [w * self.expert(x, f"{f}experts.{int(e)}.") for w, e in zip(weight, chosen, strict=True)]
        return torch.stack(routed).sum(0) + self.expert(x, f + "shared_experts.")

    def block(self, ids: list[int], start: int, context: list[list[Tensor]]) -> list[Tensor]:
        """The collapsed row of each token of the block, before the norm."""
        X = [self.w["embed.weight"][i].expand(self.c.hc_mult, -1) for i in ids]
        for s in range(self.c.draft_stages):
            for part in ("attn", "ffn"):
                entered = [self.connection(x, f"mtp.{s}.hc_{part}") for x in X]
                rows = [norm(y, self.w[f"mtp.{s}.{part}_norm.weight"]) for y, _, _ in entered]
                if part == "attn":
                    out = self.attention(rows, s, start, context[s])
                else:
                    out = [self.mixture(row, s) for row in rows]
                X = [post[:, None] * o + comb.T @ x for o, x, (_, post, comb) in zip(out, X, entered, strict=True)]
        last = f"mtp.{self.c.draft_stages - 1}."
        collapsed = []
        for x in X:
            mixes = self.w[last + "hc_head_fn"] @ norm(x.flatten(), None)
            gate = torch.sigmoid(mixes * self.w[last + "hc_head_scale"] + self.w[last + "hc_head_base"])
            collapsed.append((gate + self.c.hc_eps) @ x)
        return collapsed

    def drafts(self, collapsed: list[Tensor], anchor: int) -> tuple[list[int], list[float], Tensor]:
        """Greedy drafts, their confidence logits, and the logits they were taken from."""
        last = f"mtp.{self.c.draft_stages - 1}."
        previous, drafts, confidence, logits = anchor, [], [], []
        for z in collapsed:
            w1 = self.w[last + "markov_head.markov_w1.weight"][previous]
            u = self.w["head.weight"] @ norm(z, self.w[last + "norm.weight"])
            logits.append(u + self.w[last + "markov_head.markov_w2.weight"] @ w1)
            confidence.append(float(self.w[last + "confidence_head.proj.weight"] @ torch.cat([z, w1])))
            previous = int(logits[-1].argmax())
            drafts.append(previous)
        return drafts, confidence, torch.stack(logits)


def spicy(numerics: Numerics = FP32, impl: str | None = None) -> Transformer:
    """Every bias by the token before counts."""
    model = tiny_model(tiny_draft_config(), numerics=numerics, impl=impl)
    with torch.no_grad():
        model.stages[-1].markov_head.markov_w1.weight.mul_(10)
    return model


@torch.inference_mode()
def run(model: Transformer, prompts: list[list[int]], anchors: list[int]) -> tuple[Tensor, list[Tensor], Tensor]:
    """(collapsed rows, context rows, head rows) of one block after each prompt, all in one batch."""
    taps: list[Tensor] = []
    sequences = model.pack(list(map(len, prompts)))
    model.hidden(torch.tensor([t for p in prompts for t in p]), sequences, taps=taps)
    rows = model.draft_context(torch.cat(taps, dim=1), sequences.positions_T)
    contexts = [
        range(max(first, last - model.config.sliding_window), last)
        for first, last in zip(sequences.borders, sequences.borders[1:], strict=False)
    ]
    blocks = model.pack([BLOCK] * len(prompts), list(map(len, prompts)))
    cache = ContextOnly(model.config, rows, BlockKeys(contexts, BLOCK))
    ids = torch.tensor([[anchor, *[NOISE] * (BLOCK - 1)] for anchor in anchors]).flatten()
    collapsed_TD, head_TD = model.draft_rows(model.draft_hidden(ids, blocks, cache))  # type: ignore[arg-type]
    return collapsed_TD, rows, head_TD


def prompt_of(length: int) -> list[int]:
    return torch.randint(0, 96, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("impl", [None, "torch", "reference"])
def test_a_block_is_what_its_description_says(impl: str | None) -> None:
    """Prompts shorter than the window, as long, and longer, in one batch."""
    model, prompts, anchors = spicy(impl=impl), [prompt_of(n) for n in (1, 6, 128, 131)], [3, 17, 96, 0]
    collapsed_TD, _, head_TD = run(model, prompts, anchors)
    written = Written(model)
    for i, (prompt, anchor) in enumerate(zip(prompts, anchors, strict=True)):
        taps: list[Tensor] = []
        with torch.inference_mode():
            model.hidden(torch.tensor(prompt), model.pack([len(prompt)]), taps=taps)
        wanted = written.block([anchor, *[NOISE] * 4], len(prompt), written.context(torch.cat(taps, dim=1)))
        mine = slice(i * BLOCK, (i + 1) * BLOCK)
        torch.testing.assert_close(collapsed_TD[mine].double(), torch.stack(wanted), atol=3e-5, rtol=1e-4)
        drafts, confidence, logits = written.drafts(wanted, anchor)
        got, likely, seen, previous = [], [], [], anchor
        for row, z in zip(head_TD[mine], collapsed_TD[mine], strict=True):
            with torch.inference_mode():
                embedded, bias = model.stages[-1].markov_head(torch.tensor([previous]))
                seen.append(model.head(row[None])[0] + bias[0])
                likely.append(float(model.stages[-1].confidence_head(z[None], embedded)))
            previous = int(seen[-1].argmax())
            got.append(previous)
        assert got == drafts
        torch.testing.assert_close(torch.stack(seen).double(), logits, atol=1e-4, rtol=1e-4)
        assert likely == pytest.approx(confidence, abs=1e-4)


def test_a_tap_is_the_mean_of_the_streams_behind_a_layer() -> None:
    model, prompt = spicy(), prompt_of(9)
    kept: dict[int, Tensor] = {}
    for layer in model.layers:
        layer.register_forward_hook(lambda block, _, out: kept.update({block.spec.index: out}))
    taps: list[Tensor] = []
    with torch.inference_mode():
        model.hidden(torch.tensor(prompt), model.pack([9]), taps=taps)
    assert len(taps) == 2
    for layer, tap in zip((1, 3), taps, strict=True):
        torch.testing.assert_close(tap, kept[layer].mean(dim=1))
        assert torch.equal(tap, stream_mean(kept[layer]))


def test_rows_of_a_block_do_not_see_another_block_or_later_context() -> None:
    """The same block beside others, and after the same prompt cut off behind it."""
    model = spicy()
    together, _, _ = run(model, [prompt_of(130), prompt_of(5), prompt_of(64)], [4, 5, 6])
    alone, _, _ = run(model, [prompt_of(5)], [5])
    torch.testing.assert_close(together[BLOCK : 2 * BLOCK], alone, atol=2e-6, rtol=0)


def test_stages_are_plain_window_attention_with_the_released_cache_row() -> None:
    """Simulated numerics: context rows have gone through fp8, all but their rotary dims."""
    model = spicy(Numerics(torch.float32, simulate=True))
    assert all(type(stage.attn) is SlidingWindowAttention for stage in model.stages)
    _, rows, _ = run(model, [prompt_of(20)], [1])
    split = model.config.head_dim - model.config.qk_rope_head_dim
    for row in rows:
        mantissa, _ = row[:, :split].frexp()
        assert torch.equal(mantissa * 16, (mantissa * 16).round())  # 4 significant bits


def test_a_new_head_has_every_parameter_of_the_table_and_no_other() -> None:
    config = tiny_draft_config()
    names = {name for name in Transformer(config).state_dict() if name.startswith("mtp.")}
    assert names == {p.name for p in parameters(config) if p.prediction}
    ends = {name for name in names if name.count(".") == 3 and name.split(".")[2] in ("main_proj", "main_norm", "norm")}
    assert ends == {"mtp.0.main_proj.weight", "mtp.0.main_norm.weight", "mtp.1.norm.weight"}
