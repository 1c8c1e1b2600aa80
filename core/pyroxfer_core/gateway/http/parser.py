"""Bytes of a connection become requests. llhttp reads the grammar; the bounds are kept here. No I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import httptools

from .limits import Budget, HttpError, Limits

_MALFORMED: Final = "the request is malformed"


@dataclass(slots=True)
class Received:
    """A whole request."""

    method: str = ""
    target: bytes = b""
    version: str = "1.1"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Lower-case names."""
    body: bytearray = field(default_factory=bytearray)
    keep_alive: bool = True

    @property
    def path(self) -> bytes:
        """The path as it was sent, of an absolute target too."""
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]


class RequestParser:
    """Feed it bytes; whole requests come out of ``ready`` in order.

    Raises from `feed`:
        HttpError: 400 malformed, 413 body too large, 431 headers too large, 503 no memory left for bodies.
    """

    def __init__(self, limits: Limits, budget: Budget) -> None:
        self._limits = limits
        self._budget = budget
        self._parser = httptools.HttpRequestParser(self)
        self._now = Received()
        self._framing_bytes = 0
        """Fed since there was the last of a body, of whole headers or of a whole request."""
        self._now_bytes = 0
        """Headers that are whole."""
        self._in_head = True
        self._failure: HttpError | None = None
        self.ready: deque[Received] = deque()
        self.began = False
        """A request began to arrive and is not whole."""
        self.wants_continue = False
        """The caller waits to be told to send the body."""

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self.began = True
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # an offer, which is declined by not taking it up
            self.ready[-1].keep_alive = False
        except httptools.HttpParserCallbackError as error:
            raise self._failure or error from None
        except httptools.HttpParserError:
            raise HttpError(400, _MALFORMED) from None
        if self._framing_bytes > self._limits.header_bytes:
            what = "request line and headers" if self._in_head else "what is neither headers nor body"
            raise HttpError(431, f"{what} is larger than {self._limits.header_bytes} bytes")

    def release(self, request: Received) -> None:
        """The request is answered: its bytes count no more."""
        self._budget.give_back(len(request.body))
        request.body = bytearray()

    def close(self) -> None:
        """Give back what unanswered requests hold."""
        for request in (self._now, *self.ready):
            self.release(request)

    def _refuse(self, status: int, text: str) -> HttpError:
        self._failure = HttpError(status, text)
        return self._failure

    # --- called by the parser ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._now = Received()
        self._now_bytes = 0
        self.began = True

    def on_url(self, url: bytes) -> None:
        self._now.target += url
        if len(self._now.target) > self._limits.header_bytes:
            raise self._refuse(431, "the request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: it must not say what nobody before us could see in the headers
        headers = self._now.headers
        headers.append((name.lower(), value))
        self._now_bytes += len(name) + len(value)
        if self._now_bytes > self._limits.header_bytes:
            raise self._refuse(431, f"headers are larger than {self._limits.header_bytes} bytes")
        if len(headers) > self._limits.headers:
            raise self._refuse(431, f"more than {self._limits.headers} headers")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._framing_bytes = 0
        now = self._now
        now.method = self._parser.get_method().decode("ascii")
        now.version = self._parser.get_http_version()
        now.keep_alive = self._parser.should_keep_alive()
        hosts = [value for name, value in now.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and now.version == "1.1"):
            raise self._refuse(400, "a request has one Host")
        if now.version not in ("1.0", "1.1"):
            raise self._refuse(400, "this server speaks HTTP/1.1 only")
        self._check_target(now, hosts)
        for name, value in now.headers:
            if name == b"content-length" and int(value) > self._limits.body_bytes:
                raise self._refuse(413, f"the body is larger than {self._limits.body_bytes} bytes")
            if name == b"expect" and value.lower() == b"100-continue" and now.version == "1.1":
                self.wants_continue = True

    def _check_target(self, now: Received, hosts: list[bytes]) -> None:
        if now.target.startswith(b"/") or (now.target == b"*" and now.method == "OPTIONS"):
            return
        scheme, mark, rest = now.target.partition(b"://")
        if not mark or scheme.lower() not in (b"http", b"https"):
            raise self._refuse(400, "the request target is no path")
        authority, slash, path = rest.partition(b"/")
        if hosts and authority.lower() != hosts[0].lower():
            raise self._refuse(400, "the request target names another host")
        now.target = slash + path if slash else b"/"

    def on_body(self, body: bytes) -> None:
        now = self._now
        if len(now.body) + len(body) > self._limits.body_bytes:
            raise self._refuse(413, f"the body is larger than {self._limits.body_bytes} bytes")
        try:
            self._budget.take(len(body))
        except HttpError as error:
            self._failure = error
            raise
        now.body += body
        self._framing_bytes = 0

    def on_message_complete(self) -> None:
        self.ready.append(self._now)
        self._now = Received()
        self._framing_bytes = 0
        self._in_head = True
        self.began = self.wants_continue = False
