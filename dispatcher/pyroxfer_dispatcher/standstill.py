"""Messages that stand still on their way. Pure: the time is passed in."""

from __future__ import annotations


class Standstill:
    """Looks on whether anything moves.

    Args:
        limit_s: seconds without progress within a message after which its sender or receiver counts as lost.
    """

    __slots__ = ("_progress", "_since", "limit_s")

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._progress: object = None
        self._since = 0.0

    def look(self, now: float, progress: object, *, within: bool) -> bool:
        """Called now and then: whether nothing has moved for too long.

        Args:
            progress: equal to that of the last time while nothing moves.
            within: something is on its way.
        """
        if progress != self._progress or not within:
            self._progress, self._since = progress, now
            return False
        return now - self._since > self.limit_s
