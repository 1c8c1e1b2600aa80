"""What a daemon says about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..objects.context import current_context_var
from ..objects.documentation import describe_members
from ..objects.expose import expose, oneway

if TYPE_CHECKING:
    from .daemon import Daemon


@expose
class DaemonObject:
    """What every daemon serves about itself, as ``Pyro.Daemon``."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def ping(self) -> None:
        """Nothing: the answer is the point."""

    async def registered(self) -> list[str]:
        """Ids of all objects."""
        return self._daemon.table.ids()

    async def info(self) -> str:
        """A line about the daemon."""
        daemon = self._daemon
        count = len(daemon.table.ids())
        return (
            f"Pyro.Daemon bound on {daemon.location}, NAT {daemon.nat_location}, {count} objects registered. "
            f"Servertype: pyroxfer trio"
        )

    async def get_metadata(self, objectId: str, as_lists: bool = False) -> dict[str, Any]:
        """Exposed members of an object, as sets or lists."""
        meta = self._daemon.table.get(objectId).exposed.metadata
        shape: Any = list if as_lists else set
        return {"methods": shape(meta.methods), "oneway": shape(meta.oneway), "attrs": shape(meta.attrs)}

    async def describe(self, object_id: str) -> dict[str, Any]:
        """Exposed members of an object with their documentation and parameters, as plain data."""
        entry = self._daemon.table.get(object_id)
        return describe_members(entry.target if entry.is_class else type(entry.target))

    async def get_next_stream_item(self, streamId: str) -> Any:
        """The next item of an item stream."""
        return await self._daemon.streams.next_item(streamId, current_context_var.get().client)

    @oneway
    async def close_stream(self, streamId: str) -> None:
        """End an item stream."""
        await self._daemon.streams.close(streamId)
