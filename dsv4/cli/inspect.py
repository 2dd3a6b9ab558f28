"""`dsv4 inspect`: what a model is and what it costs, beside DeepSeek-V3.2. Arithmetic only, no weights needed."""

import json as json_format
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv4.cli.flags import writable
from dsv4.config import ModelConfig
from dsv4.config.released import KNOWN, SHAPES, released_config
from dsv4.files import naming
from dsv4.hub import title

if TYPE_CHECKING:
    from dsv4.checkpoint import Layout


def inspect(model: str = "nano", *, json: bool = False, plot: Path | None = None) -> None:
    """Show a model's layer plan, parameters, size on disk, cache and FLOPs per token.

    Parameters
    ----------
    model
        flash, pro, flash-0731, pro-0813, nano, a folder with config.json, the name of a pulled model, or a GGUF file.
    json
        Print one JSON object instead of tables.
    plot
        Also write an SVG with FLOPs and cache size against context length, as in the report's figure 1.
    """
    writable("--plot", plot, ".svg")
    name, config, folder = find_config(model)
    facts = describe(name, config, folder)
    if plot is not None:
        from dsv4.cli.inspect_peer import efficiency_svg

        others = {other: find_config(other)[1] for other in SHAPES if other != name}
        with naming(plot):
            plot.write_text(efficiency_svg({**others, name: config}), encoding="utf-8")
    if json:
        print(json_format.dumps(facts, indent=1))
    else:
        _print(facts)


def find_config(model: str) -> tuple[str, ModelConfig, Path | None]:
    """The name and config behind `flash` and other released names, `nano`, a pulled model, a folder or a GGUF file, and
    the folder or the file where there is one."""
    from dsv4.checkpoint.gguf.source import is_gguf, open_gguf
    from dsv4.cli.folders import model_folder

    if model in KNOWN:
        return model, released_config(model), None
    folder = model_folder(model)
    if not folder.exists():
        raise FileNotFoundError(f"{model}: not {', '.join(KNOWN)} or nano, and no such folder")
    if is_gguf(folder):
        return folder.name, open_gguf(folder).folder.config, folder
    return title(folder), ModelConfig.from_file(folder), folder if folder.is_dir() else folder.parent


def describe(name: str, config: ModelConfig, folder: Path | None = None) -> dict[str, Any]:
    """Everything `inspect` shows, as plain data."""
    from dsv4.cli.inspect_peer import V32
    from dsv4.model import accounting as a

    parameters = a.parameters(config)
    contexts = []
    for n in a.CONTEXTS:
        flops, peer_flops = a.flops_per_token(config, n), V32.flops_per_token(n)
        kv, peer_kv = a.kv_bytes(config, n), V32.kv_bytes_per_token() * n
        contexts.append(
            {
                "tokens": n,
                "kv_bytes": kv,
                "v32_kv_bytes": peer_kv,
                "kv_times_smaller": peer_kv / kv,
                "flops_per_token": flops.total,
                "flops_parts": asdict(flops),
                "v32_flops_per_token": peer_flops.total,
                "flops_share": flops.total / peer_flops.total,
            }
        )
    return {
        "model": name,
        "layers": [{"index": s.index, "attention": s.kind.value, "routing": s.routing.value} for s in config.layers],
        "prediction_layers": config.num_nextn_predict_layers,
        "draft_stages": config.draft_stages,
        "parameters": {**asdict(parameters), "total": parameters.total, "active": parameters.active},
        "disk": _disk(config, folder),
        "kv_bytes_per_token": a.kv_bytes_per_token(config),
        "v32_kv_bytes_per_token": V32.kv_bytes_per_token(),
        "window_bytes_per_sequence": a.window_bytes(config),
        "engine_bytes_per_token": {
            mode: a.kv_bytes_per_token(config, size) for mode, size in (("bf16", 2), ("fp32", 4))
        },
        "contexts": contexts,
    }


def _disk(config: ModelConfig, folder: Path | None) -> dict[str, Any]:
    """Layout, tensors and bytes: of a GGUF file what it holds, of a folder what its layout needs."""
    from dsv4.checkpoint import expected_tensors
    from dsv4.checkpoint.gguf.check import describe_types
    from dsv4.checkpoint.gguf.source import is_gguf, open_gguf

    if folder is not None and is_gguf(folder):
        source = open_gguf(folder)
        return {"layout": describe_types(source), "tensors": len(source.tensors()), "bytes": source.nbytes}
    layout = _layout(config, folder)
    tensors = expected_tensors(config, layout)
    return {
        "layout": layout.name,
        "tensors": len(tensors),
        "bytes": sum(spec.nbytes for spec in tensors.values()),
    }


def _layout(config: ModelConfig, folder: Path | None) -> "Layout":
    """What the folder's files hold, or without files what the config says."""
    from dsv4.checkpoint import CheckpointReader, detect_layout
    from dsv4.planning.files import layout_of

    if folder is not None and any(folder.glob("*.safetensors")):
        return detect_layout(CheckpointReader(folder), config)
    return layout_of(config)


def plan_text(layers: list[dict[str, Any]]) -> str:
    """'2 swa, 21 csa, 20 hca: swa swa (csa hca)x20 csa': the plan in one line."""
    kinds = [layer["attention"] for layer in layers]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("swa", "csa", "hca") if kind in kinds)
    pairs: list[str] = []
    start = next((i for i, kind in enumerate(kinds) if kind == "csa"), len(kinds))
    body = kinds[start:]
    for pair, run in groupby([" ".join(body[i : i + 2]) for i in range(0, len(body), 2)]):
        times = len(list(run))
        pairs.append(f"({pair})x{times}" if times > 1 else pair)
    return f"{counts}: {' '.join([*kinds[:start], *pairs])}"


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size * (1000 if unit == "T" else 1):
            return f"{value / size:,.3f}{unit}"
    return f"{value:.0f}"


def _operations(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:,.3f} {unit}" if unit == "T" else f"{value / size:,.1f} {unit}"
    return f"{value / 1e6:,.1f} M"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:.0f} B"


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    p, disk = facts["parameters"], facts["disk"]
    hashed = sum(layer["routing"] == "hash" for layer in facts["layers"])
    console.print(f"[bold]{escape(facts['model'])}[/bold]  {plan_text(facts['layers'])}; {hashed} hash-routed")
    stages = facts["draft_stages"]
    extra = f"draft head of {stages} stages" if stages else "prediction block"
    console.print(f"parameters  {_count(p['total'])} total, {_count(p['active'])} active, {extra} {_count(p['mtp'])}")
    parts = ("embedding", "head", "attention", "compressors", "indexers", "routers", "routed_experts")
    parts += ("shared_experts", "hyper_connections", "norms")
    console.print("  " + ", ".join(f"{part.replace('_', ' ')} {_count(p[part])}" for part in parts), soft_wrap=True)
    console.print(f"on disk     {_bytes(disk['bytes'])} in {disk['tensors']:,} tensors ({disk['layout']} layout)")
    console.print(
        f"cache       {facts['kv_bytes_per_token']:,.2f} B per token + "
        f"{_bytes(facts['window_bytes_per_sequence'])} window "
        f"(V3.2: {facts['v32_kv_bytes_per_token']:,} B per token)",
        soft_wrap=True,
    )
    stored = ", ".join(f"{mode} {size:,.2f}" for mode, size in facts["engine_bytes_per_token"].items())
    console.print(f"            as this engine keeps it, B per token: {stored}")
    table = Table("context", "cache", "V3.2", "smaller", "FLOPs/token", "V3.2", "share")
    for column in table.columns:
        column.justify = "right"
    for row in facts["contexts"]:
        table.add_row(
            f"{row['tokens'] // 1024}K",
            _bytes(row["kv_bytes"]),
            _bytes(row["v32_kv_bytes"]),
            f"{row['kv_times_smaller']:.2f}x",
            _operations(row["flops_per_token"]),
            _operations(row["v32_flops_per_token"]),
            f"{row['flops_share']:.1%}" if row["flops_share"] >= 0.001 else "<0.1%",
        )
    console.print(table)
