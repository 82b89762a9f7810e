"""What keeps other pages and other machines away from a server on this machine."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

HEADER = "x-b4m-studio"
"""Of each request that changes something: no page of another origin can send it without being allowed to."""
HOSTS = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def refusal(method: str, headers: dict[str, str]) -> str | None:
    """Why a request is refused, None if it is not. headers: with small letters.

    Host: another name that a DNS server makes lead here (rebinding) is none of HOSTS. Origin and Sec-Fetch-Site: what a page of
    another site sends along.
    """
    host = headers.get("host", "")
    if _without_port(host) not in HOSTS:
        return f"The studio answers to {', '.join(HOSTS)} alone, not to {host!r}"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return f"A page of {origin} asks, and only the studio's own may"
    navigates = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not navigates:
        return "A page of another site asks, and only the studio's own may"
    if method not in ("GET", "HEAD") and HEADER not in headers:
        return f"A request that changes something needs the header {HEADER}"
    return None


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if port.isdigit() else host


async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Middleware: refuse, or answer with the headers above."""
    reason = refusal(request.method, {key.lower(): value for key, value in request.headers.items()})
    response = JSONResponse({"error": reason}, 403) if reason else await call_next(request)
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response
