"""The flags of engines of other projects, which `dsv4 serve` answers with in place of a model of its own."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dsv4.backends.generator import RemoteGenerator
    from dsv4.cli.engine_flags import EngineFlags
    from dsv4.encoding import Tokenizer
    from dsv4.generation import SamplingDefaults

KEY_VARIABLE = "DSV4_ENGINE_KEY"
# what an engine elsewhere leaves for us to decide
OURS = ("context", "dialect")


@dataclass(frozen=True, slots=True)
class RemoteFlags:
    """Engines that are vLLM or SGLang servers.

    Parameters
    ----------
    engine
        Answer with the vLLM or SGLang server at this address (http://host:port); may be given several times for servers
        of the same model. FOLDER then needs only tokenizer.json and the small files beside it. The variable
        DSV4_ENGINE_KEY holds their key.
    engine_kind
        vllm or sglang. Default: as each server says.
    engine_silence
        Seconds without a byte after which such a server counts as lost; a long prompt is silent until its first token.
    """

    engine: tuple[str, ...] = ()
    engine_kind: Literal["auto", "vllm", "sglang"] = "auto"
    engine_silence: float = 900.0


@dataclass(slots=True)
class RemoteModel:
    """What `dsv4 serve` needs of a model that another program computes: the same names as of LocalModel."""

    name: str
    service: "RemoteGenerator"
    tokenizer: "Tokenizer"
    defaults: "SamplingDefaults"
    config: Any
    lines: list[str]
    mode: str = "remote"

    def memory_text(self) -> str:
        """The lines on the engines."""
        return "\n".join(self.lines)


def check_remote(remote: RemoteFlags, engine: "EngineFlags") -> None:
    """Raises ValueError for a flag of an engine in this process beside --engine, and for --engine-... without it."""
    from dsv4.backends.http import split_url

    if not remote.engine:
        for field in fields(remote):
            if getattr(remote, field.name) != field.default:
                raise ValueError(f"--{field.name.replace('_', '-')} needs --engine URL")
        return
    engine.refuse("dsv4 serve --engine", *(field.name for field in fields(engine) if field.name not in OURS))
    if not remote.engine_silence > 0:
        raise ValueError(f"--engine-silence must be more than 0 seconds, got {remote.engine_silence}")
    for url in remote.engine:
        split_url(url, "--engine")
    if len(set(map(_base, remote.engine))) < len(remote.engine):
        raise ValueError("--engine: the same server is named twice")


def _base(url: str) -> str:
    """The address without `/v1`."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _key() -> str | None:
    key = os.environ.get(KEY_VARIABLE) or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError(f"{KEY_VARIABLE} must be printable ASCII, without line ends")
    return key


def remote_model(folder: Path | None, remote: RemoteFlags, engine: "EngineFlags") -> RemoteModel:
    """The tokenizer and the advice of a folder, or of the folder of a tokenizer.json, and the engines that answer.
    Loads no torch. Raises OSError or ValueError naming what is wrong."""
    from dsv4.api.folders import model_folder
    from dsv4.backends.survey import connect
    from dsv4.config import ModelConfig
    from dsv4.config.generation_file import read_generation
    from dsv4.encoding import Tokenizer
    from dsv4.generation import SamplingDefaults
    from dsv4.hub.folders import title

    path = model_folder(folder)
    path = path.parent if path.name == "tokenizer.json" else path
    tokenizer = Tokenizer.load(path, dialect=engine.dialect)
    config = ModelConfig.from_file(path) if (path / "config.json").is_file() else None
    advice = read_generation(path, tokenizer.vocab_size if config is None else config.vocab_size)
    ends = () if config is None else config.end_tokens
    service, lines = connect(
        [*map(_base, remote.engine)],
        tokenizer.encode_text,
        key=_key(),
        kind=None if remote.engine_kind == "auto" else remote.engine_kind,
        silence=remote.engine_silence,
        context_length=engine.context,
        end_ids=tuple(dict.fromkeys((*ends, *advice.end_token_ids))),
    )
    defaults = SamplingDefaults(advice.temperature, advice.top_p, advice.example_prompts)
    return RemoteModel(title(path), service, tokenizer, defaults, config, lines)
