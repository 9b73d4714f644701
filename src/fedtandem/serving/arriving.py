"""Headers that come too slowly, or without end: cut off, whichever of its parsers uvicorn has taken."""

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fedtandem.serving.admission import Admission
from fedtandem.serving.faults import Refusal

if TYPE_CHECKING:
    Parser: Any = object
else:
    Parser = AutoHTTPProtocol

REQUEST_LINE = 8 << 10
"""Bytes a request line may take beside the headers."""


def patient_protocol(admission: Admission) -> type[asyncio.Protocol]:
    """uvicorn's HTTP, with the bounds of `limits` on what arrives before a request is known.

    uvicorn waits for ever on a connection that has said nothing or half a header, and its faster parser gathers headers
    without a bound; what a whole request may hold is the door's to say.
    """

    class Patient(Parser):  # type: ignore[misc,unused-ignore]
        """One connection."""

        _late: asyncio.TimerHandle | None = None
        _gathered = 0

        def connection_made(self, transport: asyncio.Transport) -> None:
            """Somebody is there; the first request has to follow."""
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            """A part of a request."""
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._rest()
            elif not self._is_answering() and not self.transport.is_closing():
                self._expect()
                if self.cycle is None or not self.cycle.more_body:  # else the rest of a body that was refused
                    self._gathered += len(data)
                most = admission.limits.max_header_bytes
                if self._gathered > most + REQUEST_LINE:
                    self._cut(Refusal(431, f"headers may hold at most {most} bytes.", "headers"))

        def connection_lost(self, exc: Exception | None) -> None:
            """Nobody is there any more."""
            self._rest()
            super().connection_lost(exc)

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _expect(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(admission.limits.header_timeout_s, self._is_late)

        def _rest(self) -> None:
            if self._late is not None:
                self._late.cancel()
            self._late, self._gathered = None, 0

        def _is_late(self) -> None:
            self._late = None
            if not self._is_answering() and not self.transport.is_closing():
                seconds = admission.limits.header_timeout_s
                self._cut(Refusal(408, f"the headers did not arrive in {seconds:g} s.", "slow"))

        def _cut(self, refusal: Refusal) -> None:
            """Say why, and hang up."""
            self._rest()
            if self.cycle is None or not self.cycle.more_body:  # a body's rest has had its answer
                body = refusal.encoded()
                head = (
                    f"HTTP/1.1 {refusal.status} {refusal.code}\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
                )
                self.transport.write(head.encode() + body)
            self.transport.close()

    return Patient
