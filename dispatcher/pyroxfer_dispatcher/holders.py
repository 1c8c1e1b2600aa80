"""Which of the lanes of a connection holds which item streams: only who made a stream can go on with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyroxfer_core import plain_call
from pyroxfer_core.errors import CommunicationError
from pyroxfer_core.wire import Body, Message

from .dialects import MAX_OWN_CALL
from .lane import Lane
from .routes import Directory

_DAEMON: Final = "Pyro.Daemon"
_CLOSE: Final = "close_stream"
_ABOUT_STREAMS: Final = (_CLOSE, "get_next_stream_item")


class Holders:
    """The lanes that keep their connection to a backend for item streams, and these streams."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._lanes: list[Lane] = []
        self._streams: dict[str, Lane] = {}

    def add(self, lane: Lane) -> None:
        """It holds a stream. Twice is fine."""
        if lane not in self._lanes:
            self._lanes.append(lane)

    def has_any(self, lane: Lane) -> bool:
        """Whether it holds a stream that has not ended."""
        return lane in self._streams.values()

    def remove(self, lane: Lane) -> None:
        """It holds nothing any more, if it ever did."""
        if lane in self._lanes:
            self._lanes.remove(lane)
            self._streams = {stream: holder for stream, holder in self._streams.items() if holder is not lane}

    def began(self, stream: str, lane: Lane) -> None:
        """A backend has begun a stream."""
        self._streams[stream] = lane

    def ended(self, stream: str) -> None:
        """Nobody will ask for it any more."""
        self._streams.pop(stream, None)

    def lane_for_blob(self, annotation: Body) -> Lane | None:
        """A lane without a call that holds streams of the service which the blob is meant for."""
        if not self._lanes:
            return None
        try:
            service = self._directory.find(annotation).service
        except (LookupError, CommunicationError):
            return None  # whoever gets the call refuses it
        return next((lane for lane in self._free() if lane.conversation.kept_for is service), None)

    def _free(self) -> Iterator[Lane]:
        return (lane for lane in self._lanes if not lane.is_busy)

    def lane_for(self, request: Message) -> tuple[Lane | None, str | None]:
        """The lane that a call without a blob must go to, if it is about an item stream, and that stream.

        Raises:
            LookupError: nobody holds the stream.
        """
        call = plain_call(request.serializer, request.body, request.flags, MAX_OWN_CALL)
        if call is None:
            return (self._lanes[0] if len(self._lanes) == 1 else None), None
        object_id, method, args = call
        if object_id != _DAEMON or method not in _ABOUT_STREAMS or not args:
            return None, None
        stream = str(args[0])
        lane = self._streams.get(stream)
        if lane is None:
            raise LookupError("this item stream has ended, or its backend is lost")
        if method == _CLOSE:
            del self._streams[stream]
        return lane, stream
