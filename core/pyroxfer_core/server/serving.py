"""Serving objects in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from ..settings import Settings
from ..uri import Uri
from .daemon import Daemon


async def serve(
    objects: Mapping[str, Any],
    *,
    host: str = "localhost",
    port: int = 0,
    settings: Settings | None = None,
    task_status: trio.TaskStatus[dict[str, Uri]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve objects and classes, by id, until cancelled.

    Use ``uris = await nursery.start(serve, {...})`` to learn their URIs once they are served.

    Raises:
        CommunicationError: the address cannot be had.
        DaemonError: an object cannot be registered.
    """
    async with Daemon(host=host, port=port, settings=settings) as daemon:
        task_status.started({object_id: daemon.register(thing, object_id) for object_id, thing in objects.items()})
        await trio.sleep_forever()
