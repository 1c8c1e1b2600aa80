"""The gateway as an ASGI application: which path leads where."""

from __future__ import annotations

import logging
from typing import Final

import trio

from .access import Access
from .answers import Answer, StreamAnswer, method_not_allowed, not_found, plain, refusal
from .calls import Calls
from .names import Names
from .options import GatewayOptions
from .page import Page
from .pool import Pool
from .request import BadRequest, Receive, Request, Scope, Send, read_arguments, read_request, target

log = logging.getLogger(__name__)

CALL_METHODS: Final = b"GET, POST, OPTIONS"
READ_METHODS: Final = b"GET, HEAD"
BUSY: Final = "the gateway runs as many calls as it may; this one did not start, try again"


class Gateway:
    """An ASGI application that passes requests on to Pyro objects.

    It runs on trio, in any server that does (``pyroxfer gateway``, ``hypercorn -k trio``), alone or mounted below a
    path. Connections are made at the first request, and closed by `close` or the server's lifespan.

    Args:
        options: what is exposed to whom, and limits.
    """

    def __init__(self, options: GatewayOptions | None = None) -> None:
        self.options = options = options or GatewayOptions()
        self.access = Access(options)
        self.names = Names(options)
        self.pool = Pool(
            options.client_settings, max_objects=options.max_objects, per_object=options.connections_per_object
        )
        self._calls = Calls(options, self.access, self.names, self.pool)
        self._page = Page(options, self.access, self.names, self.pool)
        self._running = 0

    def __repr__(self) -> str:
        return f"<Gateway, {self._running} calls running, {self.pool!r}>"

    def close(self) -> None:
        """Close the connections to objects and name server; the next request connects again."""
        self.pool.close()
        self.names.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan of the server."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = read_request(scope)
        answer: Answer | StreamAnswer
        if not trio.lowlevel.in_trio_run():
            answer = plain(500, "this application runs on trio; with hypercorn: hypercorn -k trio")
        else:
            answer = await self._answer(request, receive)
        extra = list(self.access.cors_headers(request))
        if request.correlation_id is not None:
            extra.append((b"x-pyro-correlation-id", str(request.correlation_id).encode()))
        await answer.send(send, receive, extra)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                self.close()
                return

    async def _answer(self, request: Request, receive: Receive) -> Answer | StreamAnswer:
        try:
            if request.segments[:1] == [b"pyro"] and len(request.segments) > 1:
                return await self._pyro(request, receive)
            if request.method not in ("GET", "HEAD"):
                return method_not_allowed(READ_METHODS)
            return await self._page.answer(request)
        except BadRequest as error:
            return refusal(error)
        except Exception:
            log.exception("a request failed in the gateway")
            return plain(500, "the gateway failed; its log says how")

    async def _pyro(self, request: Request, receive: Receive) -> Answer | StreamAnswer:
        """``/pyro/OBJECT/MEMBER``."""
        if request.segments == [b"pyro", b""]:
            return Answer(302, b"", headers=[(b"location", request.root_path.encode() + b"/")])
        if request.method not in ("GET", "POST", "OPTIONS"):
            return method_not_allowed(CALL_METHODS)
        if request.method == "OPTIONS":
            return plain(200, "200 OK", [(b"allow", CALL_METHODS)])
        self.access.check_site(request)
        wanted = target(request.segments[1:])
        if wanted is None:
            return not_found()
        arguments = await read_arguments(request, receive, self.options)
        self.access.check_key(request, arguments.key)
        if self._running >= self.options.max_calls:
            return plain(503, BUSY, [(b"retry-after", b"1"), (b"x-pyro-outcome", b"NotSent")])
        self._running += 1
        try:
            answer = await self._calls.answer(request, *wanted, arguments)
        except BaseException:
            self._running -= 1
            raise
        return self._counted(answer)

    def _counted(self, answer: Answer | StreamAnswer) -> Answer | StreamAnswer:
        """A stream counts as running until its end."""
        if not isinstance(answer, StreamAnswer):
            self._running -= 1
            return answer
        release = answer.release

        def release_all() -> None:
            self._running -= 1
            release()

        answer.release = release_all
        return answer


app: Final = Gateway()
"""A gateway with Pyro's defaults: names that begin with ``http.``, the name server that every program finds."""
