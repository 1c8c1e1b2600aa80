"""``nsc watch``: what changes in a name server, one line each, also over lost connections."""

from __future__ import annotations

import json
from typing import Any, Final

import click
import trio

from ..client.proxy import Proxy
from ..errors import CommunicationError, NamingError
from ..nameserver.lookup import locate_ns
from ..settings import Settings
from ._run import printable

RETRY_S: Final = 1.0
"""How long to wait before the name server is tried again."""


class Watch:
    """Prints entries and changes. After a lost connection it goes on behind the last change it saw; when that is not
    known any more it compares, so that nothing is missed.

    Args:
        prefix: of the names.
        after: a revision to begin behind.
        as_json: one object a line instead of text.
    """

    def __init__(self, prefix: str, after: int | None, as_json: bool) -> None:
        self._prefix = prefix
        self._revision = after
        self._json = as_json
        self._known: dict[str, Any] = {}
        """What was shown last, by name."""
        self._met = False
        self._lost = False
        """Whether it was said that the name server is gone."""

    async def run(self, host: str | None, port: int | None, settings: Settings) -> None:
        """Print until cancelled.

        Raises:
            NamingError: there is no name server at the beginning, or it has no watch.
        """
        while True:
            try:
                async with await locate_ns(host, port, settings=settings) as ns:
                    if ns._pyroMetadata is None or "watch" not in ns._pyroMetadata.methods:
                        raise NamingError("this name server has no watch: it is not one of ours")
                    self._met, self._lost = True, False
                    await self._follow(ns)
            except (CommunicationError, NamingError) as error:
                if not self._met or "has no watch" in str(error):
                    raise
                if not self._lost:
                    self._say(f"lost the name server, trying again: {error}")
                self._lost = True
            await trio.sleep(RETRY_S)

    async def _follow(self, ns: Proxy) -> None:
        found: dict[str, Any] | None = {} if self._revision is None else None
        """While the entries at the beginning arrive: those that did."""
        try:
            async for item in ns.watch(after=self._revision, prefix=self._prefix):
                if found is None:
                    self._show_all(item["entries"], item["revision"])
                    self._revision = item["revision"]
                    continue
                found |= item["entries"]
                if item["revision"] is not None:
                    self._show_beginning(found, item["revision"])
                    found, self._revision = None, item["revision"]
        except NamingError as error:
            if self._revision is None or "not known any more" not in str(error):
                raise
            self._say(f"{error}; comparing with what is there now")
            self._revision = None

    def _show_beginning(self, entries: dict[str, Any], revision: int) -> None:
        changed = {name: entry for name, entry in entries.items() if self._known.get(name) != entry}
        gone = dict.fromkeys(name for name in self._known if name not in entries)
        self._show_all(dict(sorted({**changed, **gone}.items())), revision)
        if not self._json:
            self._print(f"--------REVISION {revision}")

    def _show_all(self, entries: dict[str, Any], revision: int) -> None:
        for name, entry in entries.items():
            self._show(name, entry, revision)
            if entry is None:
                self._known.pop(name, None)
            else:
                self._known[name] = entry

    def _show(self, name: str, entry: Any, revision: int) -> None:
        if self._json:
            self._print(json.dumps({"revision": revision, "name": name, "entry": entry}))
        elif entry is None:
            self._print(f"- {name}")
        else:
            uris = ", ".join(address["uri"] for address in entry["addresses"])
            self._print(f"+ {name} --> {uris}")
            if entry["metadata"]:
                self._print(f"    metadata: {entry['metadata']}")

    @staticmethod
    def _print(line: str) -> None:
        click.echo(printable(line))  # flushes: whoever reads a pipe sees it at once

    @staticmethod
    def _say(text: str) -> None:
        click.echo(printable(text), err=True)
