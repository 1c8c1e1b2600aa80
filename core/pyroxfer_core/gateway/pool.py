"""Connections to the objects: kept, shared, bounded. No request opens one of its own."""

from __future__ import annotations

from collections import OrderedDict

from ..client.proxy import Proxy
from ..errors import Outcome, RefusedError
from ..serializers.base import SerializerContext
from ..serializers.vocabulary import served_as
from ..settings import Settings
from ..uri import Uri
from .values import KeptClasses

_REGISTRY = KeptClasses()


class GatewayProxy(Proxy):
    """A proxy whose answers build no objects but the library's own."""

    def _pyroContext(self, version: int, own: bool) -> SerializerContext:
        return SerializerContext(version=version, own=own, registry=_REGISTRY, autoproxy=served_as)


class Lease:
    """One connection, shared by the requests that use it at the moment."""

    __slots__ = ("in_use", "proxy")

    def __init__(self, proxy: GatewayProxy) -> None:
        self.proxy = proxy
        self.in_use = 0

    def release(self) -> None:
        """One request less uses it."""
        self.in_use -= 1

    def __enter__(self) -> GatewayProxy:
        return self.proxy

    def __exit__(self, *exception: object) -> None:
        self.release()

    @property
    def concurrent(self) -> bool:
        """Whether calls on it run at once; known once it is connected."""
        link = self.proxy._pyroLink
        return link is not None and link.concurrent


class Pool:
    """Proxies by address.

    An object of this library has one connection, on which calls run at once. One that takes a call at a time gets a
    second when the first is busy, and so on up to ``per_object``; after that calls queue.
    """

    def __init__(self, settings: Settings, *, max_objects: int, per_object: int) -> None:
        self._settings = settings
        self._max_objects = max_objects
        self._per_object = per_object
        self._lanes: OrderedDict[Uri, list[Lease]] = OrderedDict()

    def __repr__(self) -> str:
        lanes = sum(map(len, self._lanes.values()))
        return f"<Pool of {lanes} connections to {len(self._lanes)} objects>"

    def lease(self, uri: Uri) -> Lease:
        """A proxy for one request, which releases it at its end.

        Raises:
            RefusedError: connections to ``max_objects`` other objects are in use (outcome NotSent).
        """
        lease = self._choose(uri)
        lease.in_use += 1
        return lease

    def _choose(self, uri: Uri) -> Lease:
        lanes = self._lanes.get(uri)
        if lanes is None:
            self._make_room()
            lanes = self._lanes[uri] = []
        else:
            self._lanes.move_to_end(uri)
        best = min(lanes, key=lambda lane: lane.in_use, default=None)
        if best is None or (best.in_use and not best.concurrent and len(lanes) < self._per_object):
            best = Lease(GatewayProxy(uri, settings=self._settings))
            lanes.append(best)
        return best

    def _make_room(self) -> None:
        if len(self._lanes) < self._max_objects:
            return
        for uri, lanes in self._lanes.items():
            if not any(lane.in_use for lane in lanes):
                self.forget(uri)
                return
        raise RefusedError("the gateway is busy with too many objects at once", outcome=Outcome.NOT_SENT)

    def forget(self, uri: Uri) -> None:
        """Close the connections to an address, unless requests use them: then they stay for those."""
        lanes = self._lanes.get(uri, [])
        if any(lane.in_use for lane in lanes):
            return
        self._lanes.pop(uri, None)
        for lane in lanes:
            lane.proxy._pyroRelease()

    def close(self) -> None:
        """Close every connection; requests in flight end with ConnectionClosedError."""
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.proxy._pyroRelease()
        self._lanes.clear()
