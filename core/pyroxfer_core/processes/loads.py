"""How many connections each worker has, where all of them can read it: who has more lets others accept first."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

import trio

BYTES: Final = 4
"""Of one worker. Each writes its own number only."""
AFTER_YOU_S: Final = 0.001
"""How long a worker that has more connections than another leaves a new one to that. When the other does not come for
it, it is busier than it looks."""


class LoadBoard:
    """A file in memory with a number for each worker: 0 while it accepts nothing, else its connections and one."""

    def __init__(self, path: Path, count: int) -> None:
        with path.open("a+b") as file:
            file.truncate(count * BYTES)
            self._memory = mmap.mmap(file.fileno(), count * BYTES)
        self._loads = memoryview(self._memory).cast("I")

    def put(self, number: int, load: int) -> None:
        """Say how many connections a worker has, which accepts more."""
        self._loads[number] = load + 1

    def take_off(self, number: int) -> None:
        """A worker accepts nothing any more."""
        self._loads[number] = 0

    def accepts(self, number: int) -> bool:
        """Whether it does."""
        return self._loads[number] > 0

    def others(self, number: int) -> int | None:
        """The fewest connections of another worker; None when no other accepts."""
        return min((load - 1 for other, load in enumerate(self._loads) if load and other != number), default=None)


class AcceptShare:
    """One worker's part in accepting."""

    def __init__(self, board: LoadBoard, number: int) -> None:
        self._board = board
        self._number = number
        self._connections = 0

    async def turn(self) -> None:
        """Before each look whether there is a connection: let a worker that has fewer look first."""
        self._board.put(self._number, self._connections)
        fewest = self._board.others(self._number)
        if fewest is not None and fewest < self._connections:
            await trio.sleep(AFTER_YOU_S)

    def entered(self) -> None:
        """One more connection."""
        self._connections += 1
        self._board.put(self._number, self._connections)

    def left(self) -> None:
        """One has ended."""
        self._connections -= 1
        if self._board.accepts(self._number):
            self._board.put(self._number, self._connections)

    def over(self) -> None:
        """This worker accepts no more."""
        self._board.take_off(self._number)
