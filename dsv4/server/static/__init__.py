"""The chat page at `/`: static files that use the server's interface like any other client.

They need no key, because they hold no data. They load nothing from other sites and refuse to be framed.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/markdown.js": ("markdown.js", "text/javascript"),
}
HEADERS = {
    # styles that scripts set on elements are not inline styles in the sense of this policy
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """One route for each file. The files are read once, at the start."""
    return [Route(path, _file((FOLDER / name).read_bytes(), kind)) for path, (name, kind) in FILES.items()]


def _file(body: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(body, media_type=f"{kind}; charset=utf-8", headers=HEADERS)

    return send
