"""A recipe small enough for tests, with documents that cost nothing."""

import random
from pathlib import Path
from typing import Any

from dsv4.training.documents import Document
from dsv4.training.indexer_loss import Recall
from dsv4.training.loss import Losses
from dsv4.training.recipe import Recipe

VOCABULARY = 97


def numbers(losses: Losses) -> dict[str, float]:
    """The parts, and the recall over all layers' queries if it was measured."""
    found = {name: float(value) for name, value in losses.parts.items()}
    mean = Recall.mean(losses.recalls.values())
    if mean.queries:
        found |= {"recall_mass": mean.mass, "recall_entries": mean.entries}
    return found


class Letters:
    """A tokenizer of characters: what training needs of one."""

    vocab_size, bos_id, eos_id = VOCABULARY, 0, 1

    def token_id(self, text: str) -> int:
        return 2 + ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"].index(text)

    def encode_text(self, text: str, trusted: bool = False) -> list[int]:
        return [5 + ord(c) % (VOCABULARY - 5) for c in text]

    def encode_conversation(self, conversation: Any) -> tuple[list[tuple[list[int], list[int]]], int]:
        texts = [message["content"] for message in conversation["messages"]]
        parts = [self.encode_text(text) for text in texts]
        learn = [
            int(m["role"] == "assistant") for m, part in zip(conversation["messages"], parts, strict=True) for _ in part
        ]
        return [([self.bos_id, *(t for part in parts for t in part), self.eos_id], [0, *learn, 1])], 0

    def definition_json(self) -> str:
        return "letters"


def counting(rng: random.Random, codec: Letters, most: int = 60) -> Document:
    """Numbers that count up from anywhere: a model learns them quickly."""
    first, length = rng.randrange(5, 60), rng.randrange(8, most)
    return Document([0, *((first + i - 5) % (VOCABULARY - 5) + 5 for i in range(length)), 1])


def raw_recipe(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": "test",
        "seed": 3,
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_hash_layers": 1,
            "num_nextn_predict_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 32,
            "qk_rope_head_dim": 16,
            "q_lora_rank": 32,
            "o_groups": 1,
            "o_lora_rank": 128,
            "sliding_window": 16,
            "compress_ratios": [0, 4, 16, 0],
            "index_n_heads": 16,
            "index_head_dim": 32,
            "index_topk": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "routed_scaling_factor": 1.5,
            "swiglu_limit": 10.0,
        },
        "data": {
            "tokenizer": "letters",
            "pool": 4,
            "micro": 128,
            "sources": [{"name": "counting", "kind": "generator", "path": "tests.training.runs:counting"}],
        },
        "stages": [
            {"tokens": 1000, "length": 64, "phase": "dense"},
            {"tokens": 500, "length": 96, "phase": "warmup", "lr": 1e-3},
            {"tokens": 1500, "length": 96},
        ],
        "lr": {"peak": 3e-3, "final": 3e-4, "warmup": 500, "decay_from": 2000, "decay_to": 3000},
        "batch": {"full": 256},
        "qat_from": 2200,
        "run": {"save_seconds": 1e9, "recall_every": 4, "recall_queries": 2},
    }
    return {**raw, **changes}


def recipe(**changes: Any) -> Recipe:
    return Recipe.from_dict(raw_recipe(**changes))


def trainer(folder: Path, **changes: Any):
    from dsv4.training.data import open_sources
    from dsv4.training.trainer import Trainer

    made = recipe(**changes)
    codec = Letters()
    return Trainer(made, folder, codec, open_sources(made, codec, folder / "data"))
