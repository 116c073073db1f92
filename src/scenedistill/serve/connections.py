"""Connections that ask nothing, or take no answer: uvicorn waits for them without end, and counts them against all."""

from __future__ import annotations

import asyncio
from typing import Any

#: Seconds in which a connection must have put a whole request's head, counted from its start or from the last answer.
ASKING = 10.0
#: Seconds in which somebody must take some of an answer.
TAKING = 30.0
#: Connections that may be without a request; of more, the one that has been so longest goes. Who really asks sends the
#: head of the request at once, so that thousands of others cannot keep it out.
MOST_RESTING = 128
#: Bytes of a request's head.
HEAD_BYTES = 32_768


def bounded_protocol(asking: float = ASKING, taking: float = TAKING, most: int = MOST_RESTING) -> type[Any]:
    """uvicorn's protocol of a connection with these limits, for the `http` of one `uvicorn.Config`."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    resting: dict[Any, asyncio.TimerHandle] = {}  # connections without a request under way, the oldest first

    class BoundedProtocol(H11Protocol):
        """A connection that ends when nothing is asked, or no answer taken, for too long."""

        untaken: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._note()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._note()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._note()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._wake()
            self._taken()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.untaken = self.loop.call_later(taking, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._taken()

        def _note(self) -> None:
            """Begin to count, or cease to, when a request has come or has been answered; other bytes change nothing."""
            asked = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
            if asked:
                self._wake()
            elif self not in resting:
                resting[self] = self.loop.call_later(asking, self._end)
                if len(resting) > most:
                    next(iter(resting))._end()

        def _end(self) -> None:
            self._wake()
            self.transport.abort()

        def _wake(self) -> None:
            if (timer := resting.pop(self, None)) is not None:
                timer.cancel()

        def _taken(self) -> None:
            if self.untaken is not None:
                self.untaken.cancel()
                self.untaken = None

    return BoundedProtocol
