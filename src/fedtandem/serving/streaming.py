"""Server-sent events as an ASGI response of their own."""

from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class EventStream(Response):
    """Events written as they come.

    Starlette's own streaming runs two tasks per response in order to notice that nobody reads any more; here
    whoever makes the events looks after that.

    Args:
        events: written whole, one write each; faults end the stream as the iterator says.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
        self.status_code, self.background = 200, None
        self._events = events
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Headers, every event, the end."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
