"""This server as a Ray Serve application, in front of vLLM or SGLang servers or with a model of its own.

    serve run deploy.ray_serve:app folder=models/nano
    serve run deploy.ray_serve:app folder=DIR engine=http://gpu1:8001,http://gpu2:8001

Each Ray replica is a whole server; `ray[serve]` is needed beside dsv4. Ray's own proxy has no keys: bind it to this
machine, or put it behind one that has. The ledger, stored Responses and the chat page's history are files of one
process, so these replicas keep none; `dsv4 serve` does. With a model of its own every replica holds the whole model.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray import serve
from ray.serve import Application
from starlette.applications import Starlette


def build(folder: str, engine: str) -> Starlette:
    """The application of one replica. engine: addresses with commas between, "" = the folder's own model."""
    from dsv4.server import Settings, create_app

    if engine:
        from dsv4.cli.engine_flags import EngineFlags
        from dsv4.cli.remote_flags import RemoteFlags, remote_model

        model = remote_model(Path(folder), RemoteFlags(tuple(engine.split(","))), EngineFlags())
    else:
        import dsv4

        model = dsv4.load(folder)
    return create_app(
        model.service,
        model.tokenizer,
        model_name=model.name,
        defaults=model.defaults,
        settings=Settings(any_model=True),
        counters=model.service.counters,
    )


def in_a_thread(folder: str, engine: str) -> Starlette:
    """As `build`, which cannot run in the event loop of a replica."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(build, folder, engine).result()


def app(args: dict[str, str]) -> Application:
    """What `serve run` starts. args: folder; engine; replicas, the number of processes (1)."""
    folder, engine = args["folder"], args.get("engine", "")

    @serve.deployment(num_replicas=int(args.get("replicas", "1")), max_ongoing_requests=1024)
    @serve.ingress(lambda: in_a_thread(folder, engine))
    class Server:
        """One server."""

    return Server.bind()
