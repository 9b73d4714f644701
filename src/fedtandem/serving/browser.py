"""The device's page: static files of this package, and nothing from elsewhere."""

from importlib.resources import files

from fastapi import FastAPI, Response

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
"""Path -> file and type. Open without a key, since a browser shows none; they hold no data."""
GUARDS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Routes of the page."""
    for path, (name, kind) in FILES.items():
        content = (files("fedtandem.serving") / "page" / name).read_bytes()

        def show(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers=GUARDS)

        app.add_api_route(path, show, include_in_schema=False, response_class=Response)
