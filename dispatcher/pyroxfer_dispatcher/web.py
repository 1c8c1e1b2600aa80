"""The admin listener: health, metrics, and a page that shows what runs and drains back ends."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import Any, Final, Protocol

import trio

from pyroxfer_core.gateway.http import HttpServer

from .config import is_loopback
from .control import Answer, CommandError, Request
from .follow import FOLLOWING
from .metrics import CONTENT_TYPE

EVENT_S: Final = 1.0
"""How often the page is told what is new."""
MAX_COMMAND: Final = 4096
"""Bytes of a command of the page."""
UNHEALTHY_LAG_S: Final = 5.0
"""A loop that is this late does not serve anybody."""
PAGE_VERBS: Final = frozenset({"drain", "undrain", "disable"})
_TYPES: Final = {"html": "text/html; charset=utf-8", "js": "text/javascript", "css": "text/css"}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def serve_admin(listener: socket.socket, operations: Operated, hosts: frozenset[str], stop: trio.Event) -> None:
    """Serve until ``stop`` is set, or cancelled.

    Args:
        hosts: names under which it may be asked, besides those of this machine.
    """
    await HttpServer(Admin(operations, hosts)).serve([listener], stop)


class Operated(Protocol):
    """What the page shows and operates: a dispatcher, or several workers as one."""

    async def look(self) -> Answer:
        """Everything, as of now."""

    async def metrics(self) -> bytes:
        """Its numbers in the text format of Prometheus."""

    def handle(self, request: Request) -> AsyncGenerator[Answer, None]:
        """The answers to a request. CommandError: it cannot be done."""


class Admin:
    """An ASGI application."""

    def __init__(self, operations: Operated, hosts: frozenset[str] = frozenset()) -> None:
        self._operations = operations
        self._hosts = hosts
        self._files = {
            f"/{name}": (files(__package__).joinpath("static", name).read_bytes(), _TYPES[name.rpartition(".")[2]])
            for name in ("status.html", "status.js", "status.css")
        }
        self._files["/"] = self._files["/status.html"]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        if not self._is_meant(headers.get("host", "")):
            await _answer(send, 421, "this is not the host that is asked for\n")  # a page elsewhere, by its own name
        elif path == "/command" and method == "POST":
            await self._command(headers, receive, send)
        elif method not in ("GET", "HEAD"):
            await _answer(send, 405, "method not allowed\n")
        elif path == "/events":
            await self._events(receive, send)
        else:
            await _answer(send, *await self._look(path))

    def _is_meant(self, host: str) -> bool:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        name = name.strip("[]")
        return is_loopback(name) or name in self._hosts

    async def _look(self, path: str) -> tuple[int, str | bytes, str]:
        """Status, body and type of what can only be read."""
        if path in self._files:
            return (200, *self._files[path])
        if path == "/metrics":
            return (200, await self._operations.metrics(), CONTENT_TYPE)
        status = await self._operations.look()
        if path == "/healthz":
            ok = status["lag_s"] < UNHEALTHY_LAG_S
            return (200 if ok else 503, json.dumps({"ok": ok, "loop_lag_s": status["lag_s"]}), "application/json")
        if path == "/readyz":
            dead = _dead(status)
            ready = not status["draining"] and not dead and status["registered"] is not False
            body = {
                "ready": ready,
                "draining": status["draining"],
                "registered": status["registered"],
                "services_without_backend": dead,
                "registries_away": _away(status),
            }
            return (200 if ready else 503, json.dumps(body), "application/json")
        if path == "/status":
            return (200, json.dumps(status), "application/json")
        return (404, "not found; there are /, /healthz, /readyz, /metrics and /status\n", "text/plain")

    async def _events(self, receive: Receive, send: Send) -> None:
        """The state again and again, until who asked leaves."""
        await send(_start(200, "text/event-stream"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_left, receive, nursery.cancel_scope)
            while True:
                data = b"data: " + json.dumps(await self._operations.look()).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
                await trio.sleep(EVENT_S)

    async def _command(self, headers: dict[str, str], receive: Receive, send: Send) -> None:
        """One command of the page. Other sites cannot send its content type without asking first."""
        if headers.get("content-type") != "application/json":
            await _answer(send, 415, "a command is application/json\n")
            return
        try:
            request = _read(await _body(receive))
            answers = self._operations.handle(request)
            told = [answer async for answer in answers]
        except CommandError as error:
            await _answer(send, 400, json.dumps({"error": str(error)}), "application/json")
            return
        await _answer(send, 200, json.dumps(told[-1]), "application/json")


def _dead(status: dict[str, Any]) -> list[str]:
    """Services that have, or discover, backends, none of which gets calls."""
    return [
        service["name"]
        for service in status["services"]
        if (service["backends"] or service["discover"])
        and all(backend["state"] != "up" for backend in service["backends"])
    ]


def _away(status: dict[str, Any]) -> dict[str, str]:
    """Registries that are not heard, and why. What they said last counts: this alone does not make it unready."""
    return {
        section["registry"]: section["reason"] or section["state"]
        for service in status["services"]
        for section in service["discover"]
        if section["state"] != FOLLOWING
    }


def _read(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise CommandError("a command is a JSON object") from None
    if not isinstance(request, dict) or request.get("do") not in PAGE_VERBS:
        raise CommandError(f"a page may {', '.join(sorted(PAGE_VERBS))}")
    return {"do": request["do"], "target": str(request.get("target"))}


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        body += event.get("body", b"")
        if len(body) > MAX_COMMAND:
            raise CommandError("this is no command")
        if not event.get("more_body"):
            return bytes(body)


async def _until_left(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _start(status: int, kind: str) -> Message:
    headers = [(b"content-type", kind.encode()), *_HEADERS]
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _answer(send: Send, status: int, body: str | bytes, kind: str = "text/plain") -> None:
    data = body.encode() if isinstance(body, str) else body
    start = _start(status, kind)
    start["headers"].append((b"content-length", str(len(data)).encode()))
    await send(start)
    await send({"type": "http.response.body", "body": data})
