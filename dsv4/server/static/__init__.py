"""The chat page at `/`: a few static files, which talk to the server as every other client does.

They are readable without a key (they hold nothing), may load nothing from elsewhere and stand in no frame.
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
    # styles that scripts set on elements are no inline styles in this sense; nothing else is needed
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """A route for each of its files. They are read once."""
    return [Route(path, _file((FOLDER / name).read_bytes(), kind)) for path, (name, kind) in FILES.items()]


def _file(body: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(body, media_type=f"{kind}; charset=utf-8", headers=HEADERS)

    return send
