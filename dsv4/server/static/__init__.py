"""The pages at `/`, `/engine`, `/usage`, `/training` and `/model`: static files that use the server's interface like
any other client.

`web/` holds their sources, `deploy/build_pages.py` bundles them into `app/`. Where that was not done, `/` is the plain
chat page of `plain/`, which is always at `/plain`. The files need no key, because they hold no data. They load nothing
from other sites and refuse to be framed.
"""

import gzip
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent
PLAIN = FOLDER / "plain"
APP = FOLDER / "app"
APP_PATHS = ("/", "/engine", "/usage", "/training", "/model")
PLAIN_FILES = {
    "/plain": "index.html",
    "/chat.css": "chat.css",
    "/chat.js": "chat.js",
    "/markdown.js": "markdown.js",
}
# runs code that a model wrote, and has a policy of its own
SANDBOX = "/sandbox"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".map": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".wasm": "application/wasm",
}
# compressed as they are
PACKED = frozenset({".png", ".woff2"})
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
# an origin of its own without cookies, storage or network; only scripts that are written in it, and workers of them
SANDBOX_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; worker-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts"
)
# the names of bundled files change with their contents
FOR_EVER = "public, max-age=31536000, immutable"


def is_built(app: Path = APP) -> bool:
    """Whether the pages of `web/` were bundled."""
    return (app / "index.html").is_file()


def page_files(app: Path = APP) -> dict[str, Path]:
    """The file of each path."""
    files = {path: PLAIN / name for path, name in PLAIN_FILES.items()} | {SANDBOX: FOLDER / "sandbox.html"}
    if not is_built(app):
        return {**files, "/": PLAIN / "index.html"}
    bundled = {f"/app/{file.name}": file for file in sorted(app.iterdir()) if file.suffix in TYPES}
    return {**files, **bundled, **dict.fromkeys(APP_PATHS, app / "index.html")}


def page_routes(files: dict[str, Path], origins: Sequence[str] = ()) -> list[Route]:
    """One route for each file. The files are read once, at the start. origins: other sites to which the pages may
    connect."""
    policies = dict.fromkeys(files, content_policy(origins)) | {SANDBOX: SANDBOX_POLICY}
    return [Route(path, _file(path, file, policies[path])) for path, file in files.items()]


def content_policy(origins: Sequence[str]) -> str:
    """The content security policy of the pages: scripts of this server only, connections to it and to `origins`."""
    connect = " ".join(("'self'", *origins))
    # styles that scripts set on elements are not inline styles in the sense of this policy
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src {connect}; "
        "img-src 'self' data: blob:; font-src 'self'; worker-src 'self'; frame-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def _file(path: str, file: Path, policy: str) -> Callable[[Request], Awaitable[Response]]:
    body = file.read_bytes()
    kept = FOR_EVER if path.startswith("/app/") and file.suffix != ".html" else "no-cache"
    headers = {**HEADERS, "content-security-policy": policy, "cache-control": kept, "content-type": TYPES[file.suffix]}

    @cache
    def packed() -> bytes:
        return gzip.compress(body, mtime=0)

    async def send(request: Request) -> Response:
        if file.suffix in PACKED:
            return Response(body, headers=headers)
        varied = {**headers, "vary": "accept-encoding"}
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(body, headers=varied)
        return Response(packed(), headers={**varied, "content-encoding": "gzip"})

    return send
