"""Timeouts for idle connections, which uvicorn keeps without limit and counts towards its maximum."""

from __future__ import annotations

import asyncio
from typing import Any

#: Seconds within which a connection must send the complete header of a request, from its start or the last response.
REQUEST_SECONDS = 10.0
#: Seconds within which the client must receive a part of a response.
RESPONSE_SECONDS = 30.0
#: Maximum number of connections without a request; beyond that, the one that is idle longest is closed. Real clients
#: send the header at once, so thousands of idle connections cannot block them.
MOST_IDLE = 128
#: Maximum size of the header of a request in bytes.
HEAD_BYTES = 32_768


def bounded_protocol(
    request_seconds: float = REQUEST_SECONDS, response_seconds: float = RESPONSE_SECONDS, most_idle: int = MOST_IDLE
) -> type[Any]:
    """Return a protocol class with these limits, for the argument `http` of one `uvicorn.Config`.

    Args:
        request_seconds: seconds until the header of a request must be complete.
        response_seconds: seconds until the client must receive a part of a response.
        most_idle: maximum number of connections without a request.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    idle: dict[Any, asyncio.TimerHandle] = {}  # connections without a request in progress, the longest idle first

    class BoundedProtocol(H11Protocol):
        """Connection that is closed if no request is sent, or no response received, for too long."""

        response_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._update_timers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._update_timers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._update_timers()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._leave_idle()
            self._stop_response_timer()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.response_timer = self.loop.call_later(response_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_response_timer()

        def _update_timers(self) -> None:
            """Start or stop the timer after a request was received or its response sent; other bytes have no effect."""
            busy = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
            if busy:
                self._leave_idle()
            elif self not in idle:
                idle[self] = self.loop.call_later(request_seconds, self._close)
                if len(idle) > most_idle:
                    next(iter(idle))._close()

        def _close(self) -> None:
            self._leave_idle()
            self.transport.abort()

        def _leave_idle(self) -> None:
            if (timer := idle.pop(self, None)) is not None:
                timer.cancel()

        def _stop_response_timer(self) -> None:
            if self.response_timer is not None:
                self.response_timer.cancel()
                self.response_timer = None

    return BoundedProtocol
