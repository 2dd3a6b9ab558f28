"""`dsv4 bench`: prefill and decode speed by context length, optionally beside transformers in the same run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dsv4.cli.measure import Speed


def bench(
    folder: Path | None = None,
    *,
    contexts: tuple[int, ...] = (512, 2048, 8192),
    decode: int = 16,
    peer: bool = False,
    json: Path | None = None,
    mode: Literal["fp32", "bf16", "release"] = "fp32",
) -> None:
    """Measure prefill and decode tokens/s at several context lengths, one sequence, random tokens.

    Parameters
    ----------
    folder
        Checkpoint folder. Default: the bundled model.
    contexts
        Prompt lengths in tokens; repeat the flag for several.
    decode
        Tokens decoded after each prompt.
    peer
        Also measure transformers' DeepseekV4ForCausalLM on the same folder, alternating with ours.
    json
        Append one JSON line per row to this file.
    mode
        fp32, bf16, or release (the released quantised numerics).
    """
    import json as json_format

    from rich.console import Console

    from dsv4.cli.folders import default_model_folder
    from dsv4.cli.measure import Ours, Transformers, machine

    path = folder or default_model_folder()
    if decode < 1:
        raise ValueError(f"decode must be at least 1, got {decode}")
    for context in contexts:
        if context < 1:
            raise ValueError(f"contexts must be at least 1, got {context}")
    console = Console(highlight=False, stderr=True)
    with console.status("loading"):
        others: list[Any] = [Transformers(path)] if peer else []
        engines: list[Any] = [Ours(path, mode, max(contexts) + decode + 1), *others]
    rows: list[Speed] = []
    for context in contexts:
        for engine in engines:
            with console.status(f"{engine.name}: {context:,} tokens"):
                rows.append(engine.run(context, decode))
            _show(rows[-1], rows)
    if json is not None:
        with json.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json_format.dumps({**machine(), "model": path.name, **row.to_dict()}) + "\n")


def _show(row: "Speed", rows: "list[Speed]") -> None:
    """One line to stdout; a second engine's line carries the ratio to ours at the same context."""
    first = next(r for r in rows if r.context == row.context)
    ratio = ""
    if first is not row:
        prefill, decode = first.prefill_rate / row.prefill_rate, first.decode_rate / row.decode_rate
        ratio = f"   ours is {prefill:.1f}x prefill, {decode:.1f}x decode"
    print(
        f"{row.engine:<14} {row.context:>8,} tokens   prefill {row.prefill_rate:>9,.1f} tok/s   "
        f"decode {row.decode_rate:>8,.2f} tok/s   cache {row.cache_bytes / 2**20:>8,.1f} MiB{ratio}",
        flush=True,
    )
