"""The page at ``/`` and what it asks for: names, descriptions, live updates, the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any, Final

import trio

from ..errors import PyroError
from .access import NOT_EXPOSED, Access, Header
from .answers import EVENTS, SSE_COMMENT, Answer, StreamAnswer, failed, not_found, plain
from .describe import Describer, Description
from .entries import Entry
from .mirror import Mirror, View
from .names import Names
from .openapi import document
from .options import GatewayOptions
from .pool import Pool
from .request import BadRequest, Request, target
from .values import json_bytes

MAX_DESCRIBED: Final = 200
"""Objects of one OpenAPI document."""
DESCRIBED_AT_ONCE: Final = 8

_FILES: Final[Mapping[str, bytes]] = {
    "": b"text/html; charset=utf-8",
    "page.css": b"text/css; charset=utf-8",
    "page.js": b"text/javascript; charset=utf-8",
}
_POLICY: Final[tuple[Header, ...]] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Page:
    """Everything outside of ``/pyro/``."""

    def __init__(self, options: GatewayOptions, access: Access, names: Names, pool: Pool) -> None:
        self._options = options
        self._access = access
        self._names = names
        self._describer = Describer(pool)
        self._mirror = Mirror(names, access.is_exposed)
        self._watchers = 0

    async def answer(self, request: Request) -> Answer | StreamAnswer:
        """The answer to a GET.

        Raises:
            BadRequest: 403 without the key or from another site.
        """
        path = request.path[1:]
        if path in _FILES:
            self._access.check_site(request, navigation=True)
            return _file(path, _FILES[path])
        if path == "openapi.json" or path.startswith("api/"):
            self._access.check_site(request)
            self._access.check_key(request)
        if path == "openapi.json":
            return await self._openapi(request)
        if path == "api/names":
            return Answer(body=self._names_json(request, await self._mirror.look()))
        if path == "api/events":
            return self._events(request)
        if path.startswith("api/objects/"):
            return await self._object(request)
        return not_found()

    def _names_json(self, request: Request, view: View) -> bytes:
        known: dict[str, Any] = {
            "pattern": self._options.expose,
            "entries": [self._entry(request, entry) for entry in view.entries],
            "total": view.total,
            "leases": view.leases,
            "error": view.error,
        }
        if request.trusted:
            known["nameserver"] = self._names.location
        return json_bytes(known)

    def _entry(self, request: Request, entry: Entry) -> dict[str, Any]:
        """Addresses are for callers on this machine, or with the key."""
        addresses = [asdict(address) for address in entry.addresses]
        for address in addresses:
            if not request.trusted:
                del address["uri"]
        return {"name": entry.name, "tags": entry.tags, "addresses": addresses}

    def _events(self, request: Request) -> StreamAnswer:
        if self._watchers >= self._options.max_watchers:
            raise BadRequest(503, "as many pages are open as the gateway keeps up to date")
        self._watchers += 1

        def release() -> None:
            self._watchers -= 1

        keep = self._mirror.keep
        return StreamAnswer(self._changes(request), EVENTS, release=release, alive=SSE_COMMENT, background=keep)

    async def _changes(self, request: Request) -> AsyncIterator[bytes]:
        """The names now, and whenever they changed."""
        view = await self._mirror.look()
        last = b""
        while True:
            now = self._names_json(request, view)
            if now != last:
                last = now
                yield b"event: names\ndata: " + now + b"\n\n"
            view = await self._mirror.changed(view.version)

    async def _object(self, request: Request) -> Answer:
        wanted = target([*request.segments[2:], b"-"])
        if wanted is None:
            return not_found()
        if not self._access.is_exposed(wanted[0]):
            raise BadRequest(403, NOT_EXPOSED)
        try:
            found = await self._names.lookup(wanted[0])
            description = await self._describer.describe(found.uri)
        except PyroError as error:
            return failed(error, remote=False, tracebacks=False)
        return Answer(body=json_bytes(asdict(description)))

    async def _openapi(self, request: Request) -> Answer:
        view = await self._mirror.look()
        if view.error and not view.entries:
            return plain(503, view.error, [(b"retry-after", b"1")])
        objects = await self._describe_all(view.entries[:MAX_DESCRIBED])
        server = request.root_path or "/"
        return Answer(body=json_bytes(document(objects, server=server, needs_key=self._access.needs_key)))

    async def _describe_all(self, entries: Sequence[Entry]) -> dict[str, Description]:
        """Objects that answer, sorted by name."""
        found: dict[str, Description] = {}
        at_once = trio.CapacityLimiter(DESCRIBED_AT_ONCE)

        async def describe(entry: Entry) -> None:
            async with at_once:
                try:
                    address = await self._names.lookup(entry.name)
                    found[entry.name] = await self._describer.describe(address.uri)
                except PyroError:
                    pass  # an entry whose object is gone has no operations

        async with trio.open_nursery() as nursery:
            for entry in entries:
                nursery.start_soon(describe, entry)
        return dict(sorted(found.items()))


@cache
def _content(name: str) -> bytes:
    return (files(__package__) / "static" / (name or "index.html")).read_bytes()


def _file(name: str, content_type: bytes) -> Answer:
    body = _content(name)
    return Answer(200, body, content_type, [*_POLICY])
