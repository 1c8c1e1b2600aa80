"""Regular expressions from callers, in bounded time.

Python's ``re`` can neither be interrupted nor told a time limit, and holds the interpreter while it matches, and
while it compiles. A pattern with at most one repetition, option or alternative takes time proportional to the name,
so it runs right here unless there are many names; any other runs in a child process that is ended when its time is
over. So does one that would take long to compile: a range that ignores case is written out character by character.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Collection
from typing import Final

import trio

from ..errors import NamingError

MATCHING_TIMEOUT_S: Final = 2.0
"""How long a pattern may run over all names: a thousand times what a harmless one takes for 10 000 names."""

MATCHED_HERE: Final = 10_000
"""Names that a pattern with one branch may run over right here: some milliseconds."""

_BRANCHING: Final = frozenset("*+?{|")
"""Characters that make the matcher try more than one way. Escaped ones count too: that only costs a process."""
_SLOW_TO_COMPILE: Final = re.compile(r"\(\?|\\[xuUN]|[^\x00-\x7f]")
"""Flags, and what can stand at the ends of a range of a million characters."""
_CHILD: Final = """
import json, re, sys
pattern, names = json.load(sys.stdin)
try:
    matches = re.compile(pattern).match
except (re.error, OverflowError, RecursionError) as error:
    found = str(error)
else:
    found = [index for index, name in enumerate(names) if matches(name)]
json.dump(found, sys.stdout)
"""


async def matching_names(pattern: str, names: Collection[str], children: trio.CapacityLimiter) -> list[str]:
    """The names that the pattern matches at their beginning (``re.match``).

    Args:
        children: bounds how many child processes there are at once.

    Raises:
        NamingError: the pattern is not valid, or ran longer than MATCHING_TIMEOUT_S.

    Cancelling ends the child process.
    """
    if not _SLOW_TO_COMPILE.search(pattern):
        matches = _compiled(pattern).match
        branches = sum(pattern.count(character) for character in _BRANCHING)
        if branches == 0 or (branches == 1 and len(names) <= MATCHED_HERE):
            return [name for name in names if matches(name)]
    return await _matching_in_child(pattern, list(names), children)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of style; its author is elsewhere
            return re.compile(pattern)
    except RecursionError:
        raise _invalid("nested too deeply") from None
    except (re.error, OverflowError) as error:
        raise _invalid(error) from None


def _invalid(reason: object) -> NamingError:
    return NamingError(f"invalid regex: {reason}")


async def _matching_in_child(pattern: str, names: list[str], children: trio.CapacityLimiter) -> list[str]:
    question = json.dumps([pattern, names]).encode()
    async with children:
        with trio.move_on_after(MATCHING_TIMEOUT_S):
            child = await trio.run_process(
                [sys.executable, "-I", "-S", "-c", _CHILD],
                stdin=question,
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
                deliver_cancel=_kill,
            )
            if child.returncode:
                raise NamingError(f"matching the regex failed: {pattern!a}")
            found = json.loads(child.stdout)
            if isinstance(found, str):
                raise _invalid(found)
            return [names[index] for index in found]
    raise NamingError(f"regex took longer than {MATCHING_TIMEOUT_S:g} s, simplify it: {pattern!a}")


async def _kill(process: trio.Process) -> None:
    """At once: a process inside ``re`` does not hear SIGTERM's handler, and trio would wait five seconds for it."""
    process.kill()
