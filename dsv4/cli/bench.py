"""`dsv4 bench`: prefill and decode speed by context length, optionally beside transformers in the same run."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from dsv4.cli.engine_flags import EngineFlags, naming_flags
from dsv4.cli.flags import at_least, to_stderr, writable
from dsv4.files import naming
from dsv4.hub import title

if TYPE_CHECKING:
    from rich.console import Console

    from dsv4.bench.kernels import Rate
    from dsv4.bench.speed import Speed
    from dsv4.generation import PromptProgress


CONTEXTS, DECODE = (512, 2048, 8192), 16
# the contexts of --long
LONG = (4096, 16384, 65536, 262144, 1048576)
DEFAULT_ENGINE = EngineFlags()
# a measurement computes every prompt anew, and no text
WITHOUT_USE = ("queue", "windows", "interval", "snapshots", "prefix_dir", "prefix_disk", "dialect")


def bench(
    folder: Path | None = None,
    of: Path | None = None,
    *,
    contexts: Annotated[tuple[int, ...], Parameter(negative=())] = CONTEXTS,
    decode: int = DECODE,
    peer: bool = False,
    long: bool = False,
    json: Path | None = None,
    plot: Path | None = None,
    engine: Annotated[EngineFlags, Parameter(name="*")] = DEFAULT_ENGINE,
) -> None:
    """Measure prefill and decode tokens/s at several context lengths, one sequence, random tokens. `dsv4 bench kernels`
    measures the native kernels beside memory bandwidth and torch instead, `dsv4 bench model FOLDER` a whole model
    beside the bytes it reads and torch's matrix product, and several streams beside one. `dsv4 bench serve URL`
    measures servers under load.

    Parameters
    ----------
    folder
        Checkpoint folder, the name of a pulled model, or the word kernels or model. Default: the bundled model.
    of
        After the word model: the checkpoint folder. Default: the bundled model.
    contexts
        Prompt lengths in tokens; repeat the flag for several.
    decode
        Tokens decoded after each prompt.
    peer
        Also measure transformers' DeepseekV4ForCausalLM on the same folder, alternating with ours.
    long
        Measure at 4K, 16K, 64K, 256K and 1M tokens instead (as far as the model's context reaches), in chunks of 2,048,
        and show what tokens read and compute beside the machine's rates.
    plot
        Write the curves as SVG.
    json
        Append one JSON line per row to this file.
    """
    from dsv4.bench.plot import speed_svg
    from dsv4.cli.folders import model_folder

    writable("--json", json)
    writable("--plot", plot, ".svg")
    at_least(1, decode=decode, contexts=min(contexts, default=1))
    engine.refuse("dsv4 bench", *WITHOUT_USE)
    if engine.draft == "auto":  # what is measured are the steps of the model, whose random text may repeat itself
        engine = replace(engine, draft="none")
    if folder is not None and str(folder) in _WORDS and not folder.exists():
        _refuse_contexts(f"dsv4 bench {folder}", contexts, decode, peer, long, plot)
        _WORDS[str(folder)](model_folder(of), engine, json)
        return
    if of is not None:
        raise ValueError(f"one folder is measured at a time, got {folder} and {of}")
    path = model_folder(folder)
    options = {**engine.options(), "say": to_stderr, "step_tokens": 2048 if long else 512}
    lengths = _lengths(path, contexts, decode, long, engine.context)
    rows = _measure(path, lengths, decode, peer, options, json, long)
    if plot is not None:
        with naming(plot):
            plot.write_text(speed_svg(rows), encoding="utf-8")


def _refuse_contexts(
    command: str, contexts: tuple[int, ...], decode: int, peer: bool, long: bool, plot: Path | None
) -> None:
    """Raise ValueError naming the flags that say something about contexts, which a measurement of parts has not."""
    given = {
        "--contexts": contexts != CONTEXTS,
        "--decode": decode != DECODE,
        "--peer": peer,
        "--long": long,
        "--plot": plot is not None,
    }
    if flags := [flag for flag, differs in given.items() if differs]:
        raise ValueError(f"{', '.join(flags)}: no use with {command}, which measures parts")


def _lengths(
    path: Path, contexts: tuple[int, ...], decode: int, long: bool, engine_context: int | None
) -> tuple[int, ...]:
    """The prompts to measure. Raises ValueError for one that does not fit into the model's context."""
    from dsv4.config import ModelConfig

    context = ModelConfig.from_file(path).max_position_embeddings
    if engine_context is not None:
        context = min(context, engine_context)
    longest = context - decode - 1
    if long:
        return tuple(min(n, longest) for n in LONG if n <= context)
    if max(contexts) > longest:
        raise ValueError(
            f"--contexts and --decode must fit into the model's {context:,} tokens, got {max(contexts):,}, {decode:,}"
        )
    return contexts


def _measure(
    path: Path,
    contexts: tuple[int, ...],
    decode: int,
    peer: bool,
    options: dict[str, Any],
    json: Path | None,
    with_floors: bool,
) -> "list[Speed]":
    """Every engine at every context; each row is shown and kept as soon as it is there. options: of dsv4.load."""
    from rich.console import Console

    from dsv4.bench.floors import floors
    from dsv4.bench.results import append_lines
    from dsv4.bench.speed import Ours, Transformers

    console = Console(highlight=False, stderr=True)
    with console.status("loading"):
        others: list[Any] = [Transformers(path)] if peer else []
        with naming_flags():
            engines: list[Any] = [Ours(path, max(contexts) + decode + 1, **options), *others]
    rows: list[Speed] = []
    for context in contexts:
        for engine in engines:
            with _PromptStatus(console, f"{engine.name}: {context:,} tokens") as progress:
                rows.append(engine.run(context, decode, progress))
            _show(rows[-1], rows)
            if with_floors and isinstance(engine, Ours):
                _print_rates(floors(engine, rows[-1]))
            if json is not None:
                with naming(json):
                    append_lines(json, [{"model": title(path), **rows[-1].to_dict()}])
    return rows


def _kernels(path: Path, engine: EngineFlags, json: Path | None) -> None:
    """One line per kernel."""
    if engine != DEFAULT_ENGINE:
        raise ValueError("flags of the engine are for whole models; bench kernels runs no step")
    from dsv4.bench.kernels import every_rate

    _show_rates(every_rate(), json, {})


def _model(path: Path, engine: EngineFlags, json: Path | None) -> None:
    """One line per way of using the model."""
    from dsv4.bench.model import model_rates

    with naming_flags():
        mode, rates = model_rates(path, {**engine.options(), "say": to_stderr})
    _show_rates(rates, json, {"model": title(path), "mode": mode})


def _show_rates(rates: "Iterable[Rate]", json: Path | None, about: dict[str, str]) -> None:
    """Each rate, its yardstick and their ratio, shown and kept as soon as they are there."""
    from dsv4.bench.results import append_lines
    from dsv4.kernels import native

    print(f"kernels: {native.describe()}")
    for rate in rates:
        _print_rates([rate])
        if json is not None:
            with naming(json):
                append_lines(json, [{**about, "isa": native.isa(), **rate.to_dict()}])


def _print_rates(rates: "Iterable[Rate]") -> None:
    for rate in rates:
        print(
            f"{rate.kernel:<36} {rate.rate:>9.1f} of {rate.yardstick:>7.1f} {rate.unit:<8} {rate.ratio:>6.2f}",
            flush=True,
        )


_WORDS = {"kernels": _kernels, "model": _model}  # words that may replace the folder


class _PromptStatus:
    """A live line: the measurement, the progress of the prompt, and the time left."""

    def __init__(self, console: "Console", text: str) -> None:
        self._status, self._text = console.status(text), text

    def __enter__(self) -> "_PromptStatus":
        self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def __call__(self, progress: "PromptProgress") -> None:
        left = f", {progress.eta:,.0f} s to go" if progress.eta is not None else ""
        self._status.update(f"{self._text}: {progress.done / progress.total:.0%}{left}")


def _show(row: "Speed", rows: "list[Speed]") -> None:
    """One line to stdout; a second engine's line carries the ratio to ours at the same context."""
    first = next(r for r in rows if r.context == row.context)
    ratio = ""
    if first is not row:
        prefill, decode = first.prefill_rate / row.prefill_rate, first.decode_rate / row.decode_rate
        ratio = f"   ours is {prefill:.1f}x prefill, {decode:.1f}x decode"
    print(
        f"{row.engine:<14} {row.context:>8,} tokens   prefill {row.prefill_rate:>9,.1f} tok/s   "
        f"decode {row.decode_rate:>8,.2f} tok/s   cache {row.cache_bytes / 2**20:>8,.1f} MiB   "
        f"peak {row.peak_bytes / 2**20:>8,.0f} MiB{ratio}",
        flush=True,
    )


app = App(name="bench")
app.default(bench)
app.command("dsv4.cli.bench_serve:bench_serve", name="serve")
