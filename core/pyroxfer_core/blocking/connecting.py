"""How a proxy gets its connection: one thread makes it, the others wait, nobody longer than its call may take."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from ..client.handshake import name_place
from ..client.versions import remember_version, versions_to_try
from ..errors import CommunicationError, ConnectionClosedError, Outcome, ProtocolError, TimeoutError
from ..uri import Uri
from .background import read_in_background
from .link import BlockingLink
from .open import open_socket

if TYPE_CHECKING:
    from .proxy import Proxy

T = TypeVar("T")

CHECK_S: Final = 1.0
"""How often a thread that waits for another one's connection looks whether that one still tries."""


def check_time(deadline: float | None) -> None:
    """Look at the clock before a call is sent.

    Raises:
        TimeoutError: its deadline passed while there was no connection (outcome NotSent).
    """
    if deadline is not None and time.monotonic() >= deadline:
        raise TimeoutError("connecting took as long as the call may take", outcome=Outcome.NOT_SENT)


class ConnectingTurn:
    """Which thread connects a proxy. One that does so during a fork stays in the parent: the child begins anew."""

    def __init__(self) -> None:
        self._turns: dict[int, _Turn] = {}
        """By process."""

    def during(self, deadline: float | None, work: Callable[[], T]) -> T:
        """Do something in turn. Who has the turn already may ask for it again, as the hooks of a proxy do.

        Raises:
            TimeoutError: another thread was still connecting at the deadline (outcome NotSent).
        """
        process, me = os.getpid(), threading.get_ident()
        turn = self._turns.get(process) or self._turns.setdefault(process, _Turn())
        if turn.thread == me:
            return work()
        try:
            turn.take(me, deadline)
            return work()
        finally:
            if turn.thread == me:
                turn.thread = None  # here: an interrupt could come before the first step of a call that does it
                turn.rouse()


class _Turn:
    """The turn in one process.

    It is a name that is written down, not a lock that is held: an interrupt between two steps leaves nothing locked.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._changed: threading.Condition | None = None
        """Made by the first thread that has to wait."""
        self.thread: int | None = None
        """Whose turn it is; who has it takes it back."""

    def take(self, me: int, deadline: float | None) -> None:
        """Wait for it. Errors as `ConnectingTurn.during`."""
        with self._guard:
            while self.thread is not None:
                self._wait(deadline)
            self.thread = me

    def rouse(self) -> None:
        """It is nobody's any more."""
        with self._guard:
            if self._changed is not None:
                self._changed.notify_all()

    def _wait(self, deadline: float | None) -> None:
        """Wait for the thread that connects; the guard is held."""
        check_time(deadline)
        if self._changed is None:
            self._changed = threading.Condition(self._guard)
        left = CHECK_S if deadline is None else min(deadline - time.monotonic(), CHECK_S)
        self._changed.wait(max(left, 0))


def _resolved(proxy: Proxy, deadline: float | None) -> Uri:
    uri: Uri = proxy._pyroUri
    if uri.protocol == "PYRO":
        return uri
    from .names import resolve_by  # it uses proxies itself

    return resolve_by(uri, proxy._pyroSettings, deadline)


def open_link(proxy: Proxy, deadline: float | None) -> BlockingLink:
    """Find the place, connect and shake hands, in one of the protocols that may be spoken there.

    A stock Pyro4 closes, or answers in its own protocol, on a 502 hello.

    Args:
        deadline: of the call it is for, on the monotonic clock.

    Raises:
        CommunicationError: there is no connection (outcome NotSent).
    """
    settings = proxy._pyroSettings.with_changes(serializer=proxy._pyroSerializer)
    uri = _resolved(proxy, deadline)
    until = time.monotonic() + settings.connect_timeout_s
    until = until if deadline is None else min(until, deadline)
    location = uri.location or ""
    failure: CommunicationError | None = None
    cut, refused = False, 0
    versions = versions_to_try(location, settings)
    for version in versions:
        if version == refused:
            continue
        sock = open_socket(uri, settings, until)
        args = sock, version, settings, str(uri.object), location, proxy._pyroLastSeq
        link = BlockingLink(*args, background=proxy._pyroBackground)
        try:
            link.greet(settings, proxy._pyroContexts(), proxy._pyroHandshake, proxy._pyroOptions(), until)
        except (ProtocolError, ConnectionClosedError) as error:
            failure = failure or error
            cut = link.reading.ended or isinstance(error, ConnectionClosedError)
            refused = refused if cut else version
            continue
        except CommunicationError as error:
            error.outcome = Outcome.NOT_SENT
            name_place(error, location)
            raise
        if len(versions) > 1 and (
            version == 502 or not cut
        ):  # a connection that broke says nothing about what is spoken there
            remember_version(location, version)
        _begin(proxy, link)
        return link
    assert failure is not None, "at least one protocol is tried"
    failure.outcome = Outcome.NOT_SENT
    name_place(failure, location)
    raise failure


def _begin(proxy: Proxy, link: BlockingLink) -> None:
    """What follows the handshake. The connection is closed when that fails: a hook of the user's may raise."""
    try:
        if proxy._pyroBackground and link.session.concurrent:
            read_in_background(link)
        if link.welcome is not None and link.welcome.annotations:
            proxy._pyroAnswered(link.welcome)
    except BaseException:
        link.close()
        raise
