"""`dsv4 serve`: an HTTP server for the model, for clients of the official service."""

import gc
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dsv4.cli.engine_flags import EngineFlags, load_model
from dsv4.cli.flags import SERVER_SLOWDOWN, to_stderr
from dsv4.cli.listener import Listener, connection_limit, open_listener
from dsv4.cli.reading_experts import in_log, reading_told
from dsv4.cli.remote_flags import RemoteFlags, RemoteModel, check_remote, remote_model
from dsv4.cli.server_flags import ServerFiles, ServerFlags

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from dsv4.api.local_model import LocalModel
    from dsv4.config import ModelConfig
    from dsv4.server import Settings
    from dsv4.server.accounts.ledger import Ledger
    from dsv4.server.accounts.tracing import Tracing
    from dsv4.server.storage.history import History
    from dsv4.server.storage.responses import StoredResponses

# the time a computing thread may delay the thread that answers (Python's default is 5 ms)
SWITCH_SECONDS = 0.0005
# new objects between two searches for cycles, as in gc.set_threshold: with its default Python walks all objects of a
# large request many times, for half a second each, while all other threads wait
COLLECTED_AFTER = (20_000, 10, 100)
DEFAULT_ENGINE = EngineFlags()
DEFAULT_SERVER = ServerFlags()
DEFAULT_REMOTE = RemoteFlags()


def serve(
    folder: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    server: Annotated[ServerFlags, Parameter(name="*")] = DEFAULT_SERVER,
    engine: Annotated[EngineFlags, Parameter(name="*")] = DEFAULT_ENGINE,
    remote: Annotated[RemoteFlags, Parameter(name="*")] = DEFAULT_REMOTE,
) -> None:
    """Serve a model over HTTP (OpenAI chat completions and Responses, Anthropic messages). Ctrl-C stops it.

    With --engine URL the answers come from a vLLM or SGLang server, and this process adds the interfaces, keys, limits,
    the ledger and the pages.

    Parameters
    ----------
    folder
        Checkpoint folder, or the name of a pulled model; the bundled model if left out. With --engine the folder of the
        tokenizer, or its tokenizer.json.
    host
        Address to listen on. An address of other machines than this one (127.0.0.1, ::1, localhost) needs keys.
    port
        Port to listen on; 0 takes a free one.
    """
    began = time.perf_counter()
    check_remote(remote, engine)
    options = None if remote.engine else engine.options(sequences=8, slowdown=SERVER_SLOWDOWN)
    settings = server.settings(host, remote=bool(remote.engine))
    # SIGTERM ends the server like Ctrl-C, by KeyboardInterrupt
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # before the model is loaded, so that a wrong address is reported at once
    with open_listener(host, port) as listener:
        files = server.open_files()
        model = remote_model(folder, remote, engine) if options is None else load_model(folder, options, to_stderr)
        gc.collect()
        gc.freeze()  # walking the model's thousands of tensors took 3 % of the time of a step
        _tell_start(model)
        app = _application(model, folder, settings, files, server.record)

        def ready() -> None:
            url, seconds = f"http://{_printable(host)}:{listener.getsockname()[1]}", time.perf_counter() - began
            text = ready_text(model.name, url, model.service.context_length, seconds)
            print(text, file=sys.stderr, flush=True)

        try:
            with reading_told(in_log()):
                run_server(app, listener, ready, server.drain)
        except KeyboardInterrupt:
            # uvicorn raises Ctrl-C again after the drain: here it is the normal end
            print("stopped", file=sys.stderr)
        finally:
            lost = _close(model, **files)
    if lost:
        raise OSError(f"{lost} rows of usage could not be written to the ledger; they stand in the log (usage_lost)")


def _application(
    model: "LocalModel | RemoteModel",
    folder: Path | None,
    settings: "Settings",
    files: "ServerFiles",
    record: Path | None,
) -> "Starlette":
    """The server for a loaded model. folder: as the user named it; files: what the server writes; record: the trace of
    its requests."""
    from dsv4.server import create_app
    from dsv4.server.backend.recorded import Recorded

    return create_app(
        model.service if record is None else Recorded(model.service, record),
        model.tokenizer,
        model_name=model.name,
        defaults=model.defaults,
        settings=settings,
        counters=model.service.counters,
        facts={"mode": model.mode},
        architecture=None if model.config is None else partial(_architecture, model.name, model.config, folder),
        **files,
    )


def _architecture(name: str, config: "ModelConfig", folder: Path | None) -> dict[str, Any]:
    from dsv4.api.folders import model_folder
    from dsv4.cli.architecture import architecture

    return architecture(name, config, model_folder(folder))


def _tell_start(model: "LocalModel | RemoteModel") -> None:
    """Lines for the user before the server is ready."""
    from dsv4.server.static import is_built

    print(model.memory_text(), file=sys.stderr, flush=True)
    if not is_built():
        print("pages: the plain chat page only; `python3 run.py setup` builds the others", file=sys.stderr, flush=True)


def _close(
    model: "LocalModel | RemoteModel",
    ledger: "Ledger | None",
    history: "History | None",
    responses: "StoredResponses | None",
    tracing: "Tracing | None",
) -> int:
    """End the engine and all that is written. Returns the number of rows of usage that could not be written."""
    # a further signal must not interrupt the writing of usage
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    model.service.close()
    for written in (history, responses, tracing):
        if written is not None:
            written.close()
    return ledger.close() if ledger is not None else 0


def run_server(app: "Starlette", listener: Listener, ready: Callable[[], None], drain: int) -> None:
    """Answer requests until a signal; then refuse new ones and give running ones `drain` seconds.

    Raises KeyboardInterrupt at the end if a signal ended it.
    """
    from dsv4.server.draining import DrainingServer

    listener.most = connection_limit()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*COLLECTED_AFTER)
    DrainingServer(app, app.state.backend, listener, ready, drain).run([listener])


def ready_text(name: str, url: str, context: int, seconds: float) -> str:
    """The text for the user when the server is ready: its address, and two lines to copy."""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "What is 17 + 25?"}}]}}'
    return (
        f"ready in {seconds:.1f} s - {url} - {name} - context {context}\n"
        f"  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=none ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=none\n"
        f"  curl {url}/v1/chat/completions -d '{body}'"
    )


def _printable(host: str) -> str:
    return f"[{host}]" if ":" in host else host
