"""`dsv4 serve`: the model behind an HTTP interface that clients of the official service understand."""

import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dsv4.cli.engine_flags import EngineFlags

if TYPE_CHECKING:
    from dsv4.server.keys import Keys

KEYS_VARIABLE = "DSV4_API_KEYS"
MOST_HEADER_BYTES = 64 << 10
DEFAULT_FLAGS = EngineFlags()


def serve(
    folder: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Path | None = None,
    insecure: bool = False,
    any_model: bool = False,
    free_sampling: bool = False,
    requests: int = 1024,
    drain: int = 30,
    engine: Annotated[EngineFlags, Parameter(name="*")] = DEFAULT_FLAGS,
) -> None:
    """Serve a model over HTTP (OpenAI chat completions and Responses, Anthropic messages). Ctrl-C stops it.

    Parameters
    ----------
    folder
        Checkpoint folder; the bundled model if left out.
    host
        Address to listen on. Others than this machine's own (127.0.0.1, ::1, localhost) need keys.
    port
        Port to listen on; 0 takes a free one.
    keys
        File of API keys, one a line: `name key`. Or in the variable DSV4_API_KEYS, with commas between them.
    insecure
        Serve other machines although there are no keys.
    any_model
        Answer to every model name instead of only to the known ones.
    free_sampling
        Let temperature, top_p and the like count while the model thinks; by default they are fixed there.
    requests
        Answers in the making at once; more are refused as busy.
    drain
        Seconds that running answers may take to finish after Ctrl-C or SIGTERM.
    """
    import uvicorn

    began = time.perf_counter()
    options = engine.options()
    known = read_keys(keys, os.environ.get(KEYS_VARIABLE, ""))
    # SIGTERM ends as Ctrl-C does, by KeyboardInterrupt
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # before the model: a wrong address should not cost a minute of loading
    with open_listener(host, port, reachable=bool(known) or insecure) as listener:
        from dsv4.cli.local import load
        from dsv4.server import Settings, create_app
        from dsv4.server.safety import is_loopback

        settings = Settings(
            known, is_loopback(host) and not known, any_model, free_sampling=free_sampling, max_requests=requests
        )
        model = load(folder, **options)
        print(model.memory_text(), file=sys.stderr, flush=True)
        app = create_app(
            model.service,
            model.tokenizer,
            model_name=model.name,
            defaults=model.defaults,
            settings=settings,
            counters=model.service.counters,
        )
        context = model.service.context_length
        url = f"http://{_printable(host)}:{listener.getsockname()[1]}"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                seconds = time.perf_counter() - began
                print(ready_text(model.name, url, context, seconds), file=sys.stderr, flush=True)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                app.state.backend.draining = True
                await super().shutdown(sockets)

        # the application writes one line per request itself
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=drain,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        )
        try:
            Server(config).run([listener])
        except KeyboardInterrupt:
            # uvicorn has finished what was running and raises Ctrl-C again: here it is the normal end
            print("stopped", file=sys.stderr)
        finally:
            model.service.close()


def read_keys(file: Path | None, variable: str) -> "Keys":
    """The keys of a file and of the environment. Raises FileNotFoundError or ValueError naming what is wrong."""
    from dsv4.server.keys import Keys

    own = Keys.load(file).entries if file is not None else ()
    return Keys((*own, *Keys.parse(variable.split(","), KEYS_VARIABLE).entries))


def open_listener(host: str, port: int, *, reachable: bool = False) -> socket.socket:
    """A listening socket. Raises OSError for a busy port, and ValueError for an address others can reach unless
    `reachable`."""
    from dsv4.server.safety import is_loopback

    if not reachable and not is_loopback(host):
        raise ValueError(
            f"host must be an address of this machine only (127.0.0.1, ::1, localhost), got {host!r}: "
            "without keys anyone on the network could use the server; give it --keys FILE, or --insecure"
        )
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be in [0, 65535], got {port}")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # claims the port: two sockets may bind to it while neither listens
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} on {host} is in use; choose another one with --port") from error
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def ready_text(name: str, url: str, context: int, seconds: float) -> str:
    """What the user sees once requests are answered: where, and two lines to copy."""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "What is 17 + 25?"}}]}}'
    return (
        f"ready in {seconds:.1f} s - {url} - {name} - context {context}\n"
        f"  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=none ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=none\n"
        f"  curl {url}/v1/chat/completions -d '{body}'"
    )


def _printable(host: str) -> str:
    return f"[{host}]" if ":" in host else host
