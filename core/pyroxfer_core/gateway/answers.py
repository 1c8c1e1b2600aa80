"""Answers as ASGI sends them, and which status says what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import trio

from ..errors import (
    CommunicationError,
    MessageTooLargeError,
    NamingError,
    Outcome,
    ProtocolError,
    SerializeError,
    TimeoutError,
)
from .access import Header
from .request import BadRequest, Receive, Send
from .values import error_json

JSON: Final = b"application/json; charset=utf-8"
TEXT: Final = b"text/plain; charset=utf-8"
JSON_LINES: Final = b"application/x-ndjson"
EVENTS: Final = b"text/event-stream"
SSE_COMMENT: Final = b": alive\n\n"
ALIVE_S: Final = 15.0
"""How often an event stream without events says that it lives."""
RETRY_AFTER_S: Final = 1
"""When a call that was not sent may be tried again."""
SAFE_HEADERS: Final[tuple[Header, ...]] = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


@dataclass(slots=True)
class Answer:
    """A whole answer."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: list[Header] = field(default_factory=list)

    async def send(self, send: Send, receive: Receive, extra: Iterable[Header] = ()) -> None:
        length = (b"content-length", b"%d" % len(self.body))
        headers = [(b"content-type", self.content_type), length, *SAFE_HEADERS, *self.headers, *extra]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(slots=True)
class StreamAnswer:
    """An answer in parts, which ends early when the caller goes away."""

    parts: AsyncIterator[bytes]
    """Closed in any case."""
    content_type: bytes
    headers: list[Header] = field(default_factory=list)
    status: int = 200
    release: Callable[[], object] = lambda: None
    """Called at the end, whatever happened."""
    background: Callable[[], Awaitable[None]] | None = None
    """Runs beside it, and is cancelled at its end."""
    alive: bytes = b""
    """Sent from time to time, so that nobody on the way takes silence for the end."""

    async def send(self, send: Send, receive: Receive, extra: Iterable[Header] = ()) -> None:
        headers = [(b"content-type", self.content_type), *SAFE_HEADERS, *self.headers, *extra]
        turn = trio.Lock()
        try:
            async with aclosing(self.parts), trio.open_nursery() as nursery:  # type: ignore[type-var]  # generators
                await send({"type": "http.response.start", "status": self.status, "headers": headers})
                await send({"type": "http.response.body", "body": self.alive, "more_body": True})
                nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
                if self.background is not None:
                    nursery.start_soon(self.background)
                if self.alive:
                    nursery.start_soon(self._stay_alive, send, turn)
                await self._send_parts(send, turn)
                nursery.cancel_scope.cancel()
        finally:
            self.release()

    async def _send_parts(self, send: Send, turn: trio.Lock) -> None:
        async for part in self.parts:
            async with turn:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        async with turn:
            await send({"type": "http.response.body", "body": b""})

    async def _stay_alive(self, send: Send, turn: trio.Lock) -> None:
        while True:
            await trio.sleep(ALIVE_S)
            async with turn:
                await send({"type": "http.response.body", "body": self.alive, "more_body": True})


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def plain(status: int, text: str, headers: Iterable[Header] = ()) -> Answer:
    """A text for people."""
    return Answer(status, text.encode(), TEXT, list(headers))


def refusal(error: BadRequest) -> Answer:
    """The answer to a request that cannot be served."""
    return plain(error.status, error.text)


def not_found() -> Answer:
    """Pyro's own words."""
    return plain(404, "Error 404: Not Found")


def method_not_allowed(allowed: bytes) -> Answer:
    """Pyro's own words, and which methods are."""
    return plain(405, "Error 405: Method Not Allowed", [(b"allow", allowed)])


def failed(error: BaseException, *, remote: bool, tracebacks: bool) -> Answer:
    """The answer for a call that ended in an error.

    Args:
        remote: the object itself raised it.
    """
    answer = Answer(status_of(error, remote=remote), error_json(error, tracebacks=tracebacks))
    outcome = outcome_of(error, remote=remote)
    if outcome is not None:
        answer.headers.append((b"x-pyro-outcome", outcome.value.encode()))
        if outcome is Outcome.NOT_SENT and answer.status in (503, 504):
            answer.headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    return answer


def outcome_of(error: BaseException, *, remote: bool) -> Outcome | None:
    """What is certain of the call."""
    if isinstance(error, CommunicationError) and error.outcome is not None:
        return error.outcome
    return Outcome.EXECUTED if remote else Outcome.NOT_SENT


def status_of(error: BaseException, *, remote: bool) -> int:
    """404 nothing of that name, 503 cannot have run, 504 out of time, 502 lost or unreadable, 500 the object's."""
    outcome = error.outcome if isinstance(error, CommunicationError) else None
    if remote and outcome in (None, Outcome.EXECUTED):  # else it is what a daemon or a dispatcher says of the call
        return 500
    if isinstance(error, (NamingError, AttributeError)) or is_gone(error):
        return 404
    if isinstance(error, TimeoutError):
        return 504
    if outcome is Outcome.NOT_SENT:
        if isinstance(error, MessageTooLargeError):
            return 413
        return 400 if isinstance(error, SerializeError) else 503
    return 502 if isinstance(error, CommunicationError) else 500


def is_gone(error: BaseException) -> bool:
    """A daemon that answers, and does not have the object (any more): a dead entry of the name server."""
    return isinstance(error, CommunicationError) and "unknown object" in str(error).lower()


def may_have_moved(error: CommunicationError) -> bool:
    """Nothing ran, and another address may help: nobody listens there, or not for this object."""
    if isinstance(error, (SerializeError, ProtocolError, TimeoutError)):
        return False
    return error.outcome is Outcome.NOT_SENT or is_gone(error)
