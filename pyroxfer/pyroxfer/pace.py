"""A bandwidth limit: a bucket of bytes that fills at a steady rate."""

from __future__ import annotations

from typing import Final

import trio

TURNS_PER_S: Final = 10
"""Steps are so short that a limited transfer moves this often at least."""
LEAST_STEP: Final = 16 * 1024


class Pace:
    """Lets ``rate`` bytes a second pass, all tasks that share it together; None lets everything pass.

    A second's worth may not be saved up: after a pause the rate is the same as before.
    """

    def __init__(self, rate: int | None = None) -> None:
        self._rate = rate
        self._free_at = -float("inf")

    def step(self, longest: int) -> int:
        """Bytes to move at once, at most ``longest``."""
        if self._rate is None:
            return longest
        return min(longest, max(LEAST_STEP, self._rate // TURNS_PER_S))

    async def take(self, count: int) -> None:
        """Wait for the turn of ``count`` bytes."""
        if self._rate is None:
            return
        now = trio.current_time()
        begin = max(self._free_at, now)
        self._free_at = begin + count / self._rate
        await trio.sleep_until(begin)


FREE: Final = Pace()
