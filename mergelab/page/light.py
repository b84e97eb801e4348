"""The page itself over the wire: gradio compresses its files but not the page, whose widgets are half a megabyte."""

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class PageCompressed:
    """Compresses the page alone: downloads stay as they are, and answers flow as they come."""

    def __init__(self, app: ASGIApp):
        self.others, self.page = app, GZipMiddleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.page if scope["type"] == "http" and scope["path"] in ("", "/") else self.others
        await app(scope, receive, send)


LIGHTER = {"middleware": [Middleware(PageCompressed)]}  # what FastAPI is given
