"""Train the first bundled model on generated conversations. A plain script: AdamW, two gloo ranks, resumable.

    torchrun --standalone --nproc-per-node 2 recipes/nano/train.py runs/nano --minutes 60

T packed tokens of one rank and step.
"""

import argparse
import json
import math
import os
import random
import sysconfig
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv4.config import ModelConfig
from dsv4.encoding import Tokenizer, train_bpe
from dsv4.kernels import quant
from dsv4.model.init import init_weights
from dsv4.model.layers import Linear
from dsv4.model.moe import Gate
from dsv4.model.transformer import Transformer
from dsv4.training.states import find_state, load_state, write_state
from recipes.nano.tasks import conversation

SEED = 20261122
TOKENS = 1024  # per rank and step
PEAK_LR, FINAL_LR, WARM_UP, QAT_SHARE = 3e-3, 1e-4, 100, 0.15
BALANCE_SPEED = 0.001


def nano_config(vocab_size: int) -> ModelConfig:
    """Every mechanism of V4 at about five million parameters."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=5,
        num_hash_layers=1,
        num_nextn_predict_layers=1,
        num_attention_heads=4,
        head_dim=64,
        qk_rope_head_dim=32,
        q_lora_rank=128,
        o_groups=2,
        o_lora_rank=128,
        sliding_window=128,
        compress_ratios=(0, 4, 128, 4, 128, 0),
        index_n_heads=16,
        index_head_dim=64,
        index_topk=128,
        n_routed_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        routed_scaling_factor=1.5,
        swiglu_limit=10.0,
        quantized=True,
        expert_dtype="fp4",
    )


def tokenizer_corpus() -> list[str]:
    """Conversations of the tasks and, for general English, docstrings of the standard library; no digits, so that
    every digit stays a token of its own."""
    rng = random.Random(SEED)
    texts = [m["content"] for _ in range(3000) for m in conversation(rng, True)]
    texts += [m["reasoning_content"] for _ in range(3000) for m in conversation(rng, True) if "reasoning_content" in m]
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        parts = file.read_text(encoding="utf-8", errors="ignore").split('"""')
        texts += parts[1::2]
    return ["".join(c for c in text if not c.isdigit()) for text in texts]


class Batches:
    """Packed conversations for one rank, a pure function of (seed, rank, step)."""

    def __init__(self, tokenizer: Tokenizer, rank: int) -> None:
        self.tokenizer, self.rank = tokenizer, rank
        self.assistant, self.eos = tokenizer.token_id("<｜Assistant｜>"), tokenizer.eos_id

    def __call__(self, step: int) -> tuple[list[int], Tensor, Tensor]:
        """Document lengths, tokens_T, and learn_T: the tokens an assistant says."""
        rng = random.Random(f"{SEED}/{self.rank}/{step}")
        lengths: list[int] = []
        tokens: list[int] = []
        learn: list[bool] = []
        while True:
            thinking = rng.random() < 0.6
            mode = "thinking" if thinking else "chat"
            ids = self.tokenizer.encode_messages(conversation(rng, thinking), mode)[:TOKENS]
            if len(tokens) + len(ids) > TOKENS and lengths:
                return lengths, torch.tensor(tokens), torch.tensor(learn)
            tokens += ids
            learn += self._said(ids)
            lengths.append(len(ids))

    def _said(self, ids: list[int]) -> list[bool]:
        said, start = [False] * len(ids), None
        for i, token in enumerate(ids):
            if token == self.assistant:
                start = i + 2  # the mark that opens or closes the thought belongs to the prompt
            if start is not None and i >= start:
                said[i] = True
            if token == self.eos:
                start = None
        return said


class Loads:
    """Counts the tokens of each expert for the balancing rule."""

    def __init__(self, model: Transformer) -> None:
        self.gates = {block.ffn.index: block.ffn.gate for block in [*model.layers, *model.mtp]}
        self.counts = {index: torch.zeros(gate.weight.shape[0]) for index, gate in self.gates.items()}

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        self.counts[layer] += torch.bincount(ids_TK.flatten(), minlength=score_TE.shape[1])

    @torch.no_grad()
    def move_biases(self) -> None:
        """Towards experts that got less than their share (report 2.1)."""
        for index, gate in self.gates.items():
            count = self.counts[index]
            if dist.is_initialized():
                dist.all_reduce(count)
            if isinstance(gate, Gate) and gate.bias is not None:
                gate.bias += BALANCE_SPEED * (count.mean() - count).sign()
            count.zero_()


def loss_of(model: Transformer, batch: tuple[list[int], Tensor, Tensor], loads: Loads) -> tuple[Tensor, Tensor, Tensor]:
    """(next-token loss, prediction-block loss, accuracy) over the tokens an assistant says."""
    lengths, tokens_T, learn_T = batch
    sequences = model.pack(lengths)
    x_TSD = model.hidden(tokens_T, sequences, observer=loads)
    row_T = torch.arange(len(tokens_T))
    last_T = torch.tensor(sequences.borders[1:])[sequences.sequence_T] - 1
    target = row_T[learn_T]
    logits = model.logits(x_TSD[target - 1])
    main = nn.functional.cross_entropy(logits, tokens_T[target])
    accuracy = (logits.argmax(dim=1) == tokens_T[target]).float().mean()
    next_T = tokens_T[torch.minimum(row_T + 1, last_T)]
    ahead_TSD = model.mtp_hidden(x_TSD, next_T, sequences, observer=loads)
    far = target[sequences.sequence_T[target] == sequences.sequence_T[(target - 2).clamp(min=0)]]
    ahead = nn.functional.cross_entropy(model.mtp_logits(ahead_TSD[far - 2]), tokens_T[far])
    return main, ahead, accuracy


class FakeQuantised:
    """While entered, linear weights are the values the released layout will store; gradients go to the originals."""

    def __init__(self, model: Transformer) -> None:
        self.experts = [m for n, m in model.named_modules() if isinstance(m, Linear) and ".experts." in n]
        plain = ("compressor", "weights_proj", "experts")
        self.dense = [
            m
            for n, m in model.named_modules()
            if isinstance(m, Linear) and n != "head" and not any(p in n for p in plain)
        ]

    @torch.no_grad()
    def __enter__(self) -> None:
        self.masters = [(m, m.weight.data) for m in [*self.experts, *self.dense]]
        for m in self.experts:
            m.weight.data = quant.dequantize_fp4_weight(*quant.quantize_fp4_weight(m.weight.data))
        for m in self.dense:
            m.weight.data = quant.dequantize_fp8_weight(*quant.quantize_fp8_weight(m.weight.data))

    def __exit__(self, *error: object) -> None:
        for module, master in self.masters:
            module.weight.data = master


def learning_rate(step: int, progress: float) -> float:
    """Linear warm-up by steps, then constant, then cosine over the second half of the time."""
    decay = max(0.0, (progress - 0.5) / 0.5)
    rate = FINAL_LR + (PEAK_LR - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * decay))
    return rate * min(1.0, (step + 1) / WARM_UP)


def average_gradients(parameters: list[nn.Parameter]) -> float:
    """Mean over ranks, then clipping to norm 1; returns the norm before clipping."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    grads = [p.grad for p in parameters if p.grad is not None]
    if dist.is_initialized():
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g) / dist.get_world_size())
    return float(nn.utils.clip_grad_norm_(parameters, 1.0))


class Run:
    """Everything a training run changes: model, optimizer, step count and time spent."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.model = init_weights(Transformer(nano_config(tokenizer.vocab_size)), SEED)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), eps=1e-20, fused=True)
        self.loads, self.fake = Loads(self.model), FakeQuantised(self.model)
        self.step, self.spent = 0, 0.0
        file = find_state(folder)
        if file is not None:
            saved = load_state(file)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent = saved["step"], saved["spent"]

    def advance(self, batch: tuple[list[int], Tensor, Tensor], progress: float) -> dict[str, float]:
        """One optimizer step; `progress` in [0, 1] sets the learning rate, the MTP weight and the numerics."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, progress)
        with self.fake if progress > 1 - QAT_SHARE else nullcontext():
            main, ahead, accuracy = loss_of(self.model, batch, self.loads)
            (main + (0.3 if progress < 0.5 else 0.1) * ahead).backward()
        norm = average_gradients(self.parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loads.move_biases()
        self.step += 1
        return {"loss": main.item(), "mtp": ahead.item(), "accuracy": accuracy.item(), "norm": norm}

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        write_state(self.folder, {**state, "step": self.step, "spent": self.spent})


def train(folder: Path, minutes: float) -> None:
    rank = int(os.environ.get("RANK", "0"))
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.set_num_threads(1)
    if rank == 0 and not (folder / "tokenizer.json").exists():
        train_bpe(tokenizer_corpus(), 4096, folder)
    if dist.is_initialized():
        dist.barrier()
    tokenizer = Tokenizer.load(folder)
    run, batches = Run(folder, tokenizer), Batches(tokenizer, rank)
    while run.spent < minutes * 60:
        began, progress = time.time(), run.spent / (minutes * 60)
        figures = run.advance(batches(run.step), progress)
        took = torch.tensor([time.time() - began])
        if dist.is_initialized():
            dist.broadcast(took, 0)  # ranks must agree on when to stop
        run.spent += float(took)
        if rank == 0 and run.step % 10 == 0:
            line = {
                "step": run.step,
                "minutes": run.spent / 60,
                "lr": learning_rate(run.step, progress),
                **figures,
            }
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({name: round(value, 5) for name, value in line.items()}) + "\n")
        if rank == 0 and (run.step % 100 == 0 or run.spent >= minutes * 60):
            run.save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    train(arguments.folder, arguments.minutes)
