"""Which worker has a key: a call with a key runs at most once in all workers together.

A claim is a symbolic link: it is made in one step, by one worker, and says which.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

FOLDER: Final = "keys"


class Claims:
    """The claims of one worker.

    Those of a worker that died stay as long as one would have remembered what became of them: its calls may have run.

    Args:
        folder: shared by all workers, and nobody else.
        number: of this worker.
        lifetime_s: how long claims of the one before it stay, from the first `sweep` on.
    """

    def __init__(self, folder: Path, number: int, lifetime_s: float) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._mark = f"{number}.{os.getpid()}"
        self._inherited = [path.name for path in self._folder.iterdir() if self._is_of_the_dead(path, number)]
        self._lifetime_s = lifetime_s
        self._until: float | None = None

    def _is_of_the_dead(self, path: Path, number: int) -> bool:
        with contextlib.suppress(OSError):  # another worker has just given it up
            mark = str(path.readlink())
            return mark != self._mark and mark.partition(".")[0] == str(number)
        return False

    def take(self, name: str) -> bool:
        """Claim a key by the digest of what it is good for; False when another worker has, or had it.

        Raises:
            OSError: the folder is gone, or full.
        """
        try:
            (self._folder / name).symlink_to(self._mark)
        except FileExistsError:
            return False
        return True

    def give_up(self, name: str) -> None:
        """The key is as good as new."""
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def sweep(self, now: float) -> None:
        """Forget what the worker before this one had, once its time is over. ``now`` is in seconds that never go
        back."""
        if self._until is None:
            self._until = now + self._lifetime_s
        if now >= self._until:
            while self._inherited:
                self.give_up(self._inherited.pop())
