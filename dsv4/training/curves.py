"""Curves of runs: a live page during training, and the same page as one file."""

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dsv4.training.logbook import read_log

MOST_POINTS = 2000  # of a curve in a report: more cannot be seen


def report_html(title: str, runs: dict[str, Sequence[dict[str, Any]]], about: dict[str, Any] | None = None) -> str:
    """One self-contained page with the curves of these runs: name -> lines of its log."""
    thinned = {name: list(lines[:: max(1, len(lines) // MOST_POINTS)]) for name, lines in runs.items()}
    return _page({"title": title, "runs": thinned, "about": about or {}})


def _page(data: dict[str, Any]) -> str:
    # "</" would end the script that holds the data
    text = json.dumps(data, allow_nan=False, default=str).replace("</", "<\\/")
    return (files("dsv4.training") / "curves.html").read_text(encoding="utf-8").replace("/*DATA*/null", text)


class LivePage:
    """Serves the curves of a growing log on 127.0.0.1 from a thread. port 0 takes any free one.

    Raises OSError when the port is taken.
    """

    def __init__(self, title: str, log: Path, port: int = 0) -> None:
        page = _page({"title": title, "runs": {}, "about": {}, "live": True}).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                if url.path == "/":
                    return self._send(page, "text/html; charset=utf-8")
                if url.path == "/log":
                    first = parse_qs(url.query).get("from", ["0"])[0]
                    lines = list(read_log(log)) if log.exists() else []
                    found = lines[int(first) :] if first.isdigit() else lines
                    return self._send(json.dumps(found).encode(), "application/json")
                return self.send_error(404)

            def _send(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
