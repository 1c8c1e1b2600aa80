"""Names the handler that blocks the loop: while it blocks, nobody else is served.

A thread looks at what the loop is doing now and then. One that is not waiting must answer a question in time, and
only the stack of one that does not is searched for a handler. Calls themselves pay nothing for it.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from operator import call
from types import FrameType
from typing import Any, Final

import trio

from .execute import Job, execute
from .small import _run, rest_of_small

log = logging.getLogger(__name__)

LOOKS: Final = 5
"""How often the loop is looked at within the time that a handler may block it."""
_EXECUTE: Final = frozenset({execute.__code__, _run.__code__, rest_of_small.__code__})
"""Where handlers are called."""


_watchdogs: trio.lowlevel.RunVar[dict[float, Watchdog] | None] = trio.lowlevel.RunVar("pyroxfer watchdogs", None)
"""Those of a loop, by their limit."""


class Watchdog:
    """Watches one loop, for every daemon that is served in it with the same limit: one thread, however many they are.

    Args:
        limit_s: how long a handler may keep the loop from doing anything else.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._token = trio.lowlevel.current_trio_token()
        self._loop = threading.get_ident()
        self._stop = threading.Event()
        self._answered = threading.Event()
        self._named: Job | None = None
        self._daemons = 0

    @classmethod
    def start(cls, limit_s: float) -> Watchdog:
        """Watch the calling thread's loop, for one daemon more."""
        watchdogs = _watchdogs.get()
        if watchdogs is None:
            _watchdogs.set(watchdogs := {})
        if (watchdog := watchdogs.get(limit_s)) is None:
            watchdog = watchdogs[limit_s] = cls(limit_s)
            threading.Thread(target=watchdog._watch, name="pyroxfer watchdog", daemon=True).start()
        watchdog._daemons += 1
        return watchdog

    def stop(self) -> None:
        """One daemon less; after the last one, the thread ends soon."""
        self._daemons -= 1
        if not self._daemons:
            self._stop.set()
            watchdogs = _watchdogs.get()
            assert watchdogs is not None, "started in this loop"
            del watchdogs[self._limit_s]

    def _watch(self) -> None:
        while not self._stop.wait(self._limit_s / LOOKS):
            if _is_busy(frame_of(self._loop)):
                self._ask()

    def _ask(self) -> None:
        """Log that a handler blocks, unless the loop gets to something else in time.

        The stack is read when the loop has not answered for some time, and not before: other threads may run between
        two steps of that, and a stack that changes meanwhile has ended processes.
        """
        self._answered.clear()
        try:
            self._token.run_sync_soon(self._answered.set, idempotent=True)
        except trio.RunFinishedError:
            self._stop.set()
            return
        if self._answered.wait(self._limit_s / LOOKS):
            return
        job = running_job(frame_of(self._loop))
        if job is None or job is self._named or self._answered.wait(self._limit_s):
            return
        frame = frame_of(self._loop)
        if running_job(frame) is not job:
            return
        self._named = job
        log.warning(
            "%s.%s has been blocking the loop of %s for %g ms, at %s: nobody else is served meanwhile. "
            "Let it await, or make it a plain function without inline=True",
            job.entry.object_id,
            job.method,
            job.client.daemon,
            self._limit_s * 1000,
            _place(frame),
        )


def frame_of(thread: int) -> FrameType | None:
    """Where a thread is, by its identity.

    Python 3.11 holds its lock of all threads while it makes the frames, and may collect garbage meanwhile. Finalizers
    let other threads go on: the first that starts a thread, or looks, keeps the interpreter waiting for ever, and one
    that ends crashes it. So nothing is collected, and no other thread can say otherwise: this is one step.
    """
    if not gc.isenabled():  # turning it off all the same could undo that the program turns it on right now
        return sys._current_frames().get(thread)
    steps: tuple[Any, ...] = gc.disable, sys._current_frames, gc.enable
    frames: dict[int, FrameType]
    _, frames, _ = map(call, steps)
    frame = frames.get(thread)
    frames.clear()  # the frame of this function is among them, and would keep them all, and what is in them
    return frame


def _is_busy(frame: FrameType | None) -> bool:
    """Whether the loop does something that may be a handler's; asking one that waits would wake it."""
    return frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] != "trio"


def running_job(frame: FrameType | None) -> Job | None:
    """The call whose handler this stack is in; None when it is in none."""
    while frame is not None:
        if frame.f_code in _EXECUTE:
            job = frame.f_locals.get("job")
            return job if isinstance(job, Job) else None
        frame = frame.f_back
    return None


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return "at an unknown place"
    return f"line {frame.f_lineno} of {frame.f_code.co_name} in {frame.f_code.co_filename}"
