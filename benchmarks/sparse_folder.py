"""Write a full-size checkpoint folder whose large weights are holes of sparse files, for measuring and for tests.

    .venv/bin/python -m benchmarks.sparse_folder flash /tmp/flash

Names, types, shapes and sizes are the released ones (flash: 148 GiB, pro: 805 GiB). Only embedding, routers, norms,
hash tables and biases of connections are written, about 1 GB; all other numbers read as zero. Such a model loads,
routes and runs like the real one, and what it says is meaningless. For measuring a disk and for other engines, `mid`
(2.1 GB), `mid32` (the same with 32 experts, 0.6 GB) and `flash8` (eight layers of V4-Flash's sizes with 64 experts,
8 GB) have random numbers and no holes. All have the bundled model's tokenizer: llama.cpp and flyweight do not generate
without one.
"""

import argparse
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dsv4
from dsv4.api.folders import default_model_folder
from dsv4.checkpoint.format import TensorSpec, data_order, encode_header
from dsv4.checkpoint.inventory import INDEX_NAME
from dsv4.checkpoint.names import RELEASE, expected_tensors, shard_of
from dsv4.checkpoint.writer import shard_name
from dsv4.config import ModelConfig
from dsv4.parameters import Parameter, Role, Storage, parameter_table, weight_of

CONFIGS = Path(dsv4.__file__).parent / "configs"
# of random numbers: what differs from V4-Flash
_MID: dict[str, Any] = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "o_groups": 4,
    "moe_intermediate_size": 512,
    "vocab_size": 16384,
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128, 4],
}
SHAPES: dict[str, dict[str, Any]] = {
    "mid": _MID,
    "mid32": {**_MID, "n_routed_experts": 32},
    "flash8": {"vocab_size": 16384, "n_routed_experts": 64, "compress_ratios": [0, 0, 4, 128, 4, 128, 4, 128]},
}
Fill = Callable[[str, TensorSpec, Parameter], Tensor | None]


class RoutingOnly:
    """The numbers without which a model does not route: the rest are holes (None)."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self._experts = config.n_routed_experts
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, spec: TensorSpec, parameter: Parameter) -> Tensor | None:
        draw = self._generator
        if parameter.storage is Storage.NORM:
            return torch.ones(spec.shape)
        if parameter.storage is Storage.TABLE:
            few = torch.stack([torch.randperm(self._experts, generator=draw)[: spec.shape[1]] for _ in range(1024)])
            return few.repeat(-(-spec.shape[0] // 1024), 1)[: spec.shape[0]]
        scale = {Role.EMBEDDING: 0.5, Role.ROUTER: 0.02 if name.endswith("weight") else 0.0}.get(parameter.role)
        if name.endswith(("hc_attn_base", "hc_ffn_base", "hc_head_base")):
            scale = 0.1
        return torch.randn(spec.shape, generator=draw) * scale if scale else None


class RandomNumbers:
    """Numbers of a trained model's size, cheap to draw; nothing is a hole."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self._experts = config.n_routed_experts
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, spec: TensorSpec, parameter: Parameter) -> Tensor:
        draw, shape = self._generator, spec.shape
        if parameter.storage is Storage.TABLE:
            return torch.rand(shape[0], self._experts, generator=draw).argsort(dim=1)[:, : shape[1]]
        if parameter.storage is Storage.NORM:
            return torch.rand(shape, generator=draw) + 0.5
        if spec.dtype == torch.int8:
            return torch.randint(-128, 128, shape, dtype=torch.int8, generator=draw)
        if spec.dtype == torch.float8_e8m0fnu:  # FP4 codes are 2.9 on average, FP8 ones here 1
            width = 32 * shape[1] if parameter.storage is Storage.EXPERT else 128 * shape[1]
            exponent = -round(math.log2(width) / 2) - (2 if parameter.storage is Storage.EXPERT else 0)
            return 2.0 ** (exponent + torch.randint(0, 2, shape, generator=draw))
        return torch.randn(shape, generator=draw) * (1.0 if spec.dtype == torch.float8_e4m3fn else 0.02)


def write_sparse(folder: Path, config: ModelConfig, fill: Fill) -> int:
    """Write the files of a folder in the released layout; its bytes. `fill`: the numbers of a tensor, None = a hole."""
    folder.mkdir(parents=True, exist_ok=True)
    known, specs = parameter_table(config), expected_tensors(config, RELEASE)
    shards: dict[int, dict[str, TensorSpec]] = {}
    for name, spec in specs.items():
        shards.setdefault(shard_of(name, config), {})[name] = spec
    where: dict[str, str] = {}
    for number, held in sorted(shards.items()):
        file, ordered = shard_name(number, len(shards)), data_order(held)
        where |= dict.fromkeys(held, file)
        with (folder / file).open("wb") as stream:
            stream.write(encode_header(ordered))
            begin = stream.tell()
            stream.truncate(begin + sum(spec.nbytes for spec in ordered.values()))
            for name, spec in ordered.items():
                numbers = fill(name, spec, known.get(name) or known[weight_of(name)])
                if numbers is not None:
                    stream.seek(begin)
                    stream.write(numbers.to(spec.dtype).contiguous().view(torch.uint8).numpy().tobytes())
                begin += spec.nbytes
    total = sum(spec.nbytes for spec in specs.values())
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    return total


def write_random(which: str, folder: Path) -> int:
    """A folder of one of `SHAPES` with random numbers; its bytes."""
    raw = json.loads((CONFIGS / "flash.json").read_text()) | SHAPES[which]
    raw["num_hidden_layers"], raw["num_nextn_predict_layers"] = len(SHAPES[which]["compress_ratios"]), 0
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    add_tokenizer(folder)
    config = ModelConfig.from_file(folder)
    return write_sparse(folder, config, RandomNumbers(config))


def write_full_size(which: str, folder: Path) -> int:
    """The folder of a released geometry ("flash", "pro"); its bytes."""
    config = ModelConfig.from_file(CONFIGS / f"{which}.json")
    total = write_sparse(folder, config, RoutingOnly(config))
    shutil.copy(CONFIGS / f"{which}.json", folder / "config.json")
    add_tokenizer(folder)
    return total


def add_tokenizer(folder: Path) -> None:
    """The bundled model's, smaller than the vocabularies here: the other ids have no text."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(default_model_folder() / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("flash", "pro", *SHAPES))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write = write_random if arguments.which in SHAPES else write_full_size
    total = write(arguments.which, arguments.folder)
    print(f"{arguments.folder}: {total / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
