"""The Ray Serve example starts and answers, with a stub engine behind it; skipped where Ray Serve is not installed."""

import os
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.backends.conftest import Site, site
from tests.conftest import ROOT
from tests.server.conftest import tokenizer

__all__ = ["site", "tokenizer"]  # the fixtures

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("default")
def test_the_example_answers(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    from dsv4.testing.stub import StubGenerator

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "tokenizer.json").write_text(site.tokenizer._full.to_str(), encoding="utf-8")
    script = [*site.tokenizer.encode_text("The answer is 42.", trusted=True), site.tokenizer.eos_id]
    engine = site.listen(site.server("vllm", StubGenerator(script)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        from deploy.ray_serve import app

        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app({"folder": str(tmp_path), "engine": engine}))
        body = {"messages": [{"role": "user", "content": "Hi"}], "thinking": {"type": "disabled"}}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        answer = httpx.post(url, json=body, timeout=120).json()
        assert answer["choices"][0]["message"]["content"] == "The answer is 42."
        with httpx.stream("POST", url, json={**body, "stream": True}, timeout=120) as response:
            assert response.read().endswith(b"data: [DONE]\n\n")
    finally:
        serve.shutdown()
        ray.shutdown()
