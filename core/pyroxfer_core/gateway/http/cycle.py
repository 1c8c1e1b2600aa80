"""One request and its answer, as ASGI has them."""

from __future__ import annotations

import email.utils
import http
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import unquote

import trio

from ..request import Event, Scope
from .parser import Received

SendBytes = Callable[[bytes], Awaitable[None]]

_REASONS: Final = {status.value: status.phrase.encode() for status in http.HTTPStatus}
_WITHOUT_BODY: Final = frozenset({204, 304})


class Cycle:
    """What an application gets as ``receive`` and ``send``.

    An answer whose length is known leaves in one send with its headers. When the caller is gone, what is sent goes
    nowhere and ``receive`` says so.
    """

    __slots__ = ("_body_given", "_chunked", "_head", "_send_bytes", "_started", "_status", "done", "gone",
                 "keep_alive", "request", "started_at")  # fmt: skip

    def __init__(self, request: Received, send_bytes: SendBytes, keep_alive: bool) -> None:
        self.request = request
        self.keep_alive = keep_alive and request.keep_alive
        self.gone = trio.Event()
        self.done = False
        """The whole answer was given."""
        self.started_at = trio.current_time()
        self._send_bytes = send_bytes
        self._body_given = False
        self._started = False
        self._status = 0
        self._head: list[tuple[bytes, bytes]] = []
        self._chunked = False

    @property
    def started(self) -> bool:
        """Something of the answer has left."""
        return self._started

    async def receive(self) -> Event:
        """The body, and after that the news that the caller is gone."""
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": bytes(self.request.body), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: Event) -> None:
        """Take a part of the answer."""
        if event["type"] == "http.response.start":
            self._status = event["status"]
            self._head = list(event.get("headers", ()))
            return
        await self._send_part(event.get("body", b""), bool(event.get("more_body")))

    async def _send_part(self, body: bytes, more: bool) -> None:
        data = b""
        if not self._started:
            data = self._begin(len(body), more)
        if self.request.method != "HEAD" and self._status not in _WITHOUT_BODY:
            if not self._chunked:
                data += body
            else:
                data += (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        self.done = not more
        if data and not self.gone.is_set():
            try:
                await self._send_bytes(data)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                self.gone.set()

    def _begin(self, length: int, more: bool) -> bytes:
        """Status line and headers; how the end of the body is told is decided here."""
        self._started = True
        lines = [b"HTTP/1.1 %d %b\r\n" % (self._status, _REASONS.get(self._status, b"")), b"date: ", date_text()]
        has_length = False
        for name, value in self._head:
            lines += (b"\r\n", name, b": ", value)
            if name == b"content-length":
                has_length = True
        if not has_length and self._status not in _WITHOUT_BODY:
            if not more:
                lines.append(b"\r\ncontent-length: %d" % length)
            elif self.request.version == "1.1":
                self._chunked = True
                lines.append(b"\r\ntransfer-encoding: chunked")
            else:
                self.keep_alive = False  # the end of the connection is the end of the answer
        if not self.keep_alive:
            lines.append(b"\r\nconnection: close")
        elif self.request.version == "1.0":
            lines.append(b"\r\nconnection: keep-alive")
        lines.append(b"\r\n\r\n")
        return b"".join(lines)


def asgi_scope(
    request: Received, scheme: str, client: tuple[str, int] | None, server: tuple[str, int] | None
) -> Scope:
    """The request as ASGI describes it."""
    path = request.path
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.version,
        "method": request.method,
        "scheme": scheme,
        "path": unquote(path.decode("latin-1")) if b"%" in path else path.decode("latin-1"),
        "raw_path": path,
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": client,
        "server": server,
    }


def error_answer(status: int, text: str) -> bytes:
    """A whole answer after which the connection ends."""
    body = text.encode()
    head = b"HTTP/1.1 %d %b\r\ndate: %b\r\ncontent-type: text/plain; charset=utf-8\r\n" % (
        status,
        _REASONS.get(status, b""),
        date_text(),
    )
    retry = b"retry-after: 1\r\n" if status == 503 else b""
    return head + retry + b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)


_date: tuple[int, bytes] = (0, b"")


def date_text() -> bytes:
    """Now, as HTTP writes it; made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = now, email.utils.formatdate(now, usegmt=True).encode()
    return _date[1]
