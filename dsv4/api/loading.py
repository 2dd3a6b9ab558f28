"""`dsv4.load`: loads a checkpoint folder as a `LocalModel`."""

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from dsv4.api.folders import model_folder
from dsv4.api.local_model import LocalModel
from dsv4.api.tokenizer import load_tokenizer
from dsv4.cache import CacheDtype, CacheSpec
from dsv4.cache.disk import DiskTier
from dsv4.cache.format import default_cache_dtype
from dsv4.cache.prefix import ReusePolicy
from dsv4.checkpoint import CheckpointReader, check_shapes, load_into, open_folder
from dsv4.checkpoint.adapter import read_adapter
from dsv4.config import Mode, ModelConfig
from dsv4.config.generation_file import read_generation
from dsv4.config.modes import check_mode
from dsv4.engine import Engine
from dsv4.engine.memory import DEFAULT_SHARE, check_budget, parse_memory, plan_memory
from dsv4.files import stamp
from dsv4.generation import SamplingDefaults
from dsv4.hub import title
from dsv4.kernels import native
from dsv4.kernels.moe.residency import limit_experts
from dsv4.model.layers import MODES, walk
from dsv4.model.lora import attach_adapter, merge_adapters
from dsv4.model.transformer import Transformer

DEFAULT_CONTEXT = 131_072


def load(
    folder: str | Path | None = None,
    mode: Mode = "fp32",
    *,
    context_length: int | None = None,
    memory: int | None = None,
    expert_memory: int | None = None,
    sequences: int = 8,
    cache_dtype: CacheDtype | None = None,
    reuse: ReusePolicy | None = None,
    prefix_folder: Path | None = None,
    prefix_bytes: int = 8 * 2**30,
    speculate: bool = False,
    queue: int = 1024,
    step_tokens: int = 512,
    dialect: str | None = None,
    fused: bool | None = None,
    adapter: str | Path | None = None,
) -> LocalModel:
    """Load a checkpoint folder (released layout, Base layout or plain floats) or a pulled model by its name (`flash`,
    `owner/name`); None = the bundled model.

    mode: "fp32" (exact, for research), "bf16", or "release" (the released quantised numerics).
    context_length: largest prompt plus answer in tokens; default the smaller of the model's and 131,072.
    memory: bytes the cache may take (default: half of what is free); expert_memory: bytes the routed experts may take,
    read from the checkpoint as they are chosen (default: no limit; needs mode "release"); prefix_folder: where prefixes
    are kept after the process ends, at most prefix_bytes. dialect: of the prompts: v4, v4-0731 or v4.1; default: that
    of the folder. speculate: draft with the folder's prediction block or draft head, which is loaded for this only.
    adapter: folder of a LoRA adapter; beside quantised weights its steps run op by op. The others are those of
    dsv4.engine.Engine. Raises ValueError or FileNotFoundError naming the wrong file, tensor or field.
    """
    check_mode(mode)
    path = model_folder(folder)
    config, reader, defaults = _open(path, draft=speculate)
    check_shapes(config, release_numerics=mode == "release")
    tokenizer = load_tokenizer(path, config.vocab_size, dialect)
    model, adapted = _model(config, reader, mode, adapter)
    _limit_experts(model, reader, expert_memory)
    context = min(DEFAULT_CONTEXT, config.max_position_embeddings) if context_length is None else context_length
    dtype, reuse = cache_dtype or default_cache_dtype(model), reuse or ReusePolicy()
    budget, spec = _budget(memory), CacheSpec(config, dtype)
    plan = plan_memory(spec, budget, context_length=context, sequences=sequences, snapshots=reuse.snapshots)
    disk = _disk_tier(prefix_folder, prefix_bytes, _fingerprint(path, mode, dtype, reuse.windows, speculate, adapted))
    engine = Engine(
        model,
        context_length=context,
        cache_tokens=plan.tokens,
        sequences=plan.sequences,
        step_tokens=step_tokens,
        cache_dtype=dtype,
        reuse=replace(reuse, snapshots=plan.snapshots),
        disk=disk,
        speculate=speculate,
        queue=queue,
        fused=fused,
        sampled_vocabulary=None if tokenizer is None else min(tokenizer.vocab_size, config.vocab_size),
    )
    return LocalModel(title(path), model, engine, tokenizer, defaults)


def _model(
    config: ModelConfig, reader: CheckpointReader, mode: Mode, adapter: str | Path | None
) -> tuple[Transformer, str | None]:
    """The folder's model, with an adapter on it; the adapter's digest."""
    with torch.device("meta"):
        model = Transformer(config, MODES[mode], stored_experts=adapter is None)
    load_into(model, config, reader, mode)
    added = None if adapter is None else read_adapter(adapter, config)
    if added is not None:
        for layer in added.factors:
            attach_adapter(model, layer, added.layer(layer))
        merge_adapters(model)
    for _, module in walk(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(False)
    return model.eval(), None if added is None else added.digest


def _budget(memory: int | None) -> int:
    if memory is None:
        return parse_memory(DEFAULT_SHARE)
    check_budget("memory", memory)
    return memory


def _open(folder: Path, *, draft: bool) -> tuple[ModelConfig, CheckpointReader, SamplingDefaults]:
    """A folder's config with every token that ends an answer, its reader, and its sampling defaults. Warns of unused
    files and settings. draft: with the folder's draft head, if it has one."""
    opened = open_folder(folder)
    advice = read_generation(folder, opened.config.vocab_size)
    ends = dict.fromkeys((*opened.config.end_token_ids, *advice.end_token_ids))
    for note in (*opened.notes, *advice.notes):
        warnings.warn(note, stacklevel=3)
    config = opened.config.with_changes(end_token_ids=tuple(ends))
    if config.dspark and not draft:
        config = config.without_prediction()
    return config, opened.reader, SamplingDefaults(advice.temperature, advice.top_p, advice.example_prompts)


def _disk_tier(folder: Path | None, budget: int, fingerprint: str) -> DiskTier | None:
    return None if folder is None else DiskTier(folder, budget=budget, fingerprint=fingerprint)


def _limit_experts(model: Transformer, reader: CheckpointReader, budget: int | None) -> None:
    """Limit the memory of routed experts, which then stay in the checkpoint's files. Raises ValueError for a checkpoint
    that does not allow it, and for a budget below the experts of one token."""
    if budget is None:
        limit_experts({}, None)
        return
    layers = [block.ffn.weights() for block in model.blocks]
    if layers[0].s1[0] is None:
        raise ValueError("expert_memory needs mode 'release' and a checkpoint with FP4 or FP8 experts")
    size = max(weights.expert_bytes() for weights in layers)
    least = 2 * size * model.config.num_experts_per_tok
    if budget < least:
        raise ValueError(
            f"expert_memory must be at least {least:,} bytes (twice the experts of a token), got {budget:,}"
        )
    limit_experts(reader.maps(), budget, size)


def _fingerprint(folder: Path, *settings: object) -> str:
    """A digest of everything a cached row depends on: configuration, weight files, numerics and storage."""
    digest = hashlib.blake2b(f"{settings} {native.isa() if native.available() else 'torch'}".encode(), digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update("{} {} {}".format(file.name, *stamp(file)).encode())
    return digest.hexdigest()
