"""``current_context`` as Pyro programs know it."""

from __future__ import annotations

import threading
import uuid
from typing import Any

from ..objects.context import CallContext, current_context_var
from ..wire.message import Body


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

    def __getattr__(self, name: str) -> Any:
        served = self._served()
        if served is None or name.startswith("_"):
            raise AttributeError(f"{name} is known only inside a remote call")
        return getattr(served, name)

    @property
    def annotations(self) -> dict[str, Body]:
        """Of the request being served; else what to send."""
        served = self._served()
        return self._annotations if served is None else served.annotations

    @annotations.setter
    def annotations(self, value: dict[str, Body]) -> None:
        served = self._served()
        if served is None:
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
            self._correlation_id = value
        else:
            served.correlation_id = value

    def outgoing(self) -> tuple[dict[str, Body], uuid.UUID | bytes | None]:
        """What a call made here carries."""
        served = self._served()
        if served is None:
            return self._annotations, self._correlation_id
        return {}, served.known_correlation

    def answered(self, annotations: dict[str, Body]) -> None:
        """Keep the annotations of an answer."""
        if self._served() is None:
            self._response = annotations


current_context = CurrentContext()
