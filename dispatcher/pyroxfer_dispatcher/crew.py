"""Several workers, operated as one dispatcher: a command goes to all of them, and their answers are put together."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from time import monotonic
from typing import Any, Final

import trio

from pyroxfer_core.errors import CommunicationError

from .control import Answer, CommandError, Request, ask
from .operations import REPORT_S
from .shares import control_of, keep_said, said_in
from .state import BackendState, State
from .together import join_backends, joined

ASK_S: Final = 5.0
"""How long a worker may take to answer; one that does not is left out."""
NOBODY_S: Final = 3600.0
"""What counts as the delay of the loop when no worker answers."""
AGAIN_S: Final = 0.25
"""How often a worker that is being replaced is looked for by those who follow calls."""
TRACED: Final = 1000
"""Records that wait for somebody who follows calls."""
FOR_BACKENDS: Final = frozenset({"drain", "undrain", "disable", "weight"})
_OUT: Final = frozenset({"draining", "drained", "disabled"})


class Crew:
    """The workers of one dispatcher.

    Args:
        folder: shared with them.
        count: how many there are.
        end: tells all of them to drain, and to end.
        restart: has a new parent with new workers take over; its number.
        facts: what their parent knows itself: ``location``, ``object``, ``draining``, ``predecessor`` and
            ``registered``.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        end: Callable[[], None],
        restart: Callable[[], Awaitable[int]],
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        self._folder = folder
        self._numbers = range(count)
        self._end = end
        self._restart_all = restart
        self._facts = facts
        self._since = monotonic()
        said = said_in(folder).backends
        self._said = {(one.service, one.name, one.uri): one for one in said}

    @property
    def state(self) -> State:
        """What operators said of backends."""
        return State(tuple(self._said.values()))

    def handle(self, request: Request) -> AsyncGenerator[Answer, None]:
        """The answers to a request.

        Raises:
            CommandError: it cannot be done.
        """
        verb = request["do"]
        if verb == "status":
            return self._status()
        if verb == "drain" and request.get("target") is None:
            return self._drain()
        if verb == "trace":
            return self._trace(request)
        if verb == "restart":
            return self._restart()
        if verb not in FOR_BACKENDS:
            known = sorted({*FOR_BACKENDS, "status", "trace", "restart"})
            raise CommandError(f"unknown command; known are {', '.join(known)}")
        return self._tell(request)

    async def metrics(self) -> bytes:
        """The numbers of each, for Prometheus."""
        from .metrics import labelled, text_of  # needs the extra http

        found = await self._ask_all({"do": "metrics"})
        return text_of(labelled({str(number): answer["families"] for number, answer in sorted(found.items())}))

    async def look(self) -> Answer:
        """The status of all of them together."""
        found = await self._ask_all({"do": "status"})
        parts = {number: found[number] for number in sorted(found)}
        workers = [
            {"number": number, **{key: status[key] for key in ("pid", "up_s", "lag_s", "clients")}}
            for number, status in parts.items()
        ]
        return {
            **self._facts(),
            "pid": os.getpid(),
            "up_s": round(monotonic() - self._since, 3),
            "lag_s": max((worker["lag_s"] for worker in workers), default=NOBODY_S),
            **joined(list(parts.values())),
            "workers": workers,
        }

    async def _status(self) -> AsyncGenerator[Answer, None]:
        yield await self.look()

    async def _drain(self) -> AsyncGenerator[Answer, None]:
        clients = (await self.look())["clients"]
        self._end()
        yield {"draining": "dispatcher", "clients": clients}

    async def _restart(self) -> AsyncGenerator[Answer, None]:
        clients = (await self.look())["clients"]
        yield {"restarted": await self._restart_all(), "was": os.getpid(), "clients": clients}

    async def _tell(self, request: Request) -> AsyncGenerator[Answer, None]:
        """A command for a backend: all carry it out, or it is refused as the first refuses it."""
        report = await self._told(request)
        self._remember(request, report)
        yield report
        waits = request["do"] == "drain" and request.get("wait")
        while waits and report["state"] in _OUT and (report["in_flight"] or report["clients"]):
            await trio.sleep(REPORT_S)
            report = await self._told({**request, "wait": False})
            yield report

    async def _told(self, request: Request) -> Answer:
        answers = await self._ask_all({**request, "wait": False}, refusals=True)
        if not answers:
            raise CommandError("no worker answers; try again")
        reports = [answers[number] for number in sorted(answers)]
        return {"service": reports[0]["service"], **join_backends(reports)}

    def _remember(self, request: Request, report: Answer) -> None:
        key = (report["service"], report["name"], report["uri"])
        known = self._said.get(key)
        weight = report["weight"] if request["do"] == "weight" else known.weight if known is not None else None
        self._said[key] = BackendState(*key, report["state"] in _OUT, report["state"] == "disabled", weight)
        keep_said(self._folder, self.state)

    async def _ask_all(self, request: Request, *, refusals: bool = False) -> dict[int, Answer]:
        """The first answer of each worker; those that do not answer are left out."""
        found: dict[int, Answer] = {}
        refused: list[CommandError] = []

        async def ask_one(number: int) -> None:
            with trio.move_on_after(ASK_S):
                try:
                    async with aclosing(ask(control_of(self._folder, number), request)) as answers:
                        found[number] = await anext(answers)
                except CommandError as error:
                    refused.append(error)
                except CommunicationError:
                    pass  # it is being replaced

        async with trio.open_nursery() as nursery:
            for number in self._numbers:
                nursery.start_soon(ask_one, number)
        if refusals and refused:
            raise refused[0]
        return found

    async def _trace(self, request: Request) -> AsyncGenerator[Answer, None]:
        """Records of all workers, as they come. One task for each feeds the channel as long as somebody reads it."""
        send, receive = trio.open_memory_channel[Answer](TRACED)
        scopes = {number: trio.CancelScope() for number in self._numbers}

        async def follow(number: int) -> None:
            with scopes[number]:
                while True:
                    try:
                        async with aclosing(ask(control_of(self._folder, number), request)) as records:
                            async for record in records:
                                await send.send(record)
                    except (CommunicationError, CommandError):
                        await trio.sleep(AGAIN_S)

        for number in self._numbers:
            trio.lowlevel.spawn_system_task(follow, number)
        try:
            while True:
                yield await receive.receive()
        finally:
            for scope in scopes.values():
                scope.cancel()
