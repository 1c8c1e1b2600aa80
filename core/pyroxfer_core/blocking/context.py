"""``current_context`` as Pyro programs know it."""

from __future__ import annotations

import threading
import uuid
from typing import Any, Final

from ..access import Identity
from ..client.calls import CallOptions, correlation_bytes
from ..errors import PyroError
from ..objects.context import CallContext, current_context_var
from ..transport.sockets import address_of
from ..wire.message import Body

NO_OPTIONS: Final = CallOptions()
_SERIALIZER_IDS: Final = {"serpent": 1, "marshal": 2, "json": 3, "msgpack": 4}
_users: Final[list[bool]] = []
"""Not empty once any thread has looked at what it sends or got back: until then calls need not look either."""


class CurrentContext(threading.local):
    """Inside a call of a daemon: the facts of that call. Outside: what this thread sends, and last got back.

    ``annotations`` set by a client go with every call of its thread until they are changed, as in Pyro5; what a
    served call received is not passed on to the calls it makes, but its correlation id is.
    """

    def __init__(self) -> None:
        self._annotations: dict[str, Body] = {}
        self._response: dict[str, Body] = {}
        self._correlation_id: uuid.UUID | None = None

    @staticmethod
    def _served() -> CallContext | None:
        return current_context_var.get(None)

    @property
    def client(self) -> Any:
        """The caller's connection; None outside of a call."""
        served = self._served()
        return None if served is None else served.client

    @property
    def client_sock_addr(self) -> Any:
        """The caller's address as its socket tells it, also in one-way calls; None outside of a call."""
        served = self._served()
        return None if served is None else address_of(str(served.peer))

    @property
    def identity(self) -> Identity | None:
        """In a served call: who the caller is, and ``how`` that is known; None when nobody asked."""
        served = self._served()
        return None if served is None else served.identity

    @property
    def seq(self) -> int:
        """Sequence number of the request; 0 outside of a call."""
        served = self._served()
        return 0 if served is None else served.seq

    @property
    def msg_flags(self) -> int:
        """Flags of the request, numbered as in Pyro5; 0 outside of a call."""
        served = self._served()
        return 0 if served is None else served.msg_flags

    @property
    def serializer_id(self) -> int:
        """The request's serializer, numbered as in Pyro5; 0 outside of a call."""
        served = self._served()
        return 0 if served is None else _SERIALIZER_IDS.get(served.serializer_id, 0)

    @property
    def annotations(self) -> dict[str, Body]:
        """Of the request being served; else what to send."""
        served = self._served()
        if served is None:
            _users[:] = [True]
            return self._annotations
        return served.annotations

    @annotations.setter
    def annotations(self, value: dict[str, Body]) -> None:
        served = self._served()
        if served is None:
            _users[:] = [True]
            self._annotations = dict(value)
        else:
            served.annotations = dict(value)

    @property
    def response_annotations(self) -> dict[str, Body]:
        """To send with the answer to the request being served; else those of the last answer."""
        served = self._served()
        return self._response if served is None else served.response_annotations

    @response_annotations.setter
    def response_annotations(self, value: dict[str, Body]) -> None:
        served = self._served()
        if served is None:
            self._response = dict(value)
        else:
            served.response_annotations = dict(value)

    @property
    def correlation_id(self) -> uuid.UUID | None:
        """Of the request being served; else what to send, None for nothing."""
        served = self._served()
        return self._correlation_id if served is None else served.correlation_id

    @correlation_id.setter
    def correlation_id(self, value: uuid.UUID | None) -> None:
        served = self._served()
        if served is None:
            _users[:] = [True]
            self._correlation_id = value
        else:
            served.correlation_id = value

    def track_resource(self, resource: Any) -> None:
        """Close ``resource`` when the caller's connection ends. It is held weakly.

        Raises:
            PyroError: outside of a call.
        """
        self._inside().track_resource(resource)

    def untrack_resource(self, resource: Any) -> None:
        """Leave ``resource`` open when the connection ends.

        Raises:
            PyroError: outside of a call.
        """
        self._inside().untrack_resource(resource)

    def _inside(self) -> CallContext:
        served = self._served()
        if served is None:
            raise PyroError("resources are tracked only inside a remote call")
        return served

    def to_global(self) -> dict[str, Any]:
        """What another thread needs to go on as this one: hand it to `from_global` there."""
        return {
            "served": self._served(),
            "annotations": dict(self._annotations),
            "response_annotations": dict(self._response),
            "correlation_id": self._correlation_id,
        }

    def from_global(self, values: dict[str, Any]) -> None:
        """Take over what `to_global` gave in another thread."""
        if values["served"] is not None:
            current_context_var.set(values["served"])
        _users[:] = [True]
        self._annotations = dict(values["annotations"])
        self._response = dict(values["response_annotations"])
        self._correlation_id = values["correlation_id"]

    def options(self) -> CallOptions:
        """What a call made here carries. What the last answer brought is forgotten: the next may bring nothing."""
        served = self._served()
        if served is None:
            self._response = {}
            if not self._annotations and self._correlation_id is None:
                return NO_OPTIONS
            return CallOptions(None, dict(self._annotations), correlation_bytes(self._correlation_id))
        return CallOptions(None, {}, served.correlation_bytes, chain=served.chain)

    def answered(self, annotations: dict[str, Body]) -> None:
        """Keep the annotations of an answer."""
        if self._served() is None:
            _users[:] = [True]
            self._response = annotations


current_context: Final = CurrentContext()


def call_options() -> CallOptions:
    """What a call made here carries. Programs that never touched `current_context` pay nothing for it."""
    if not _users and current_context_var.get(None) is None:
        return NO_OPTIONS
    return current_context.options()
