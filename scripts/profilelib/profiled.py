"""Runs a program under the profiler. Usage: profiled.py STATS_FILE PROGRAM ARGUMENT...

Profiling begins when the program first binds or connects a socket, so that its start is no part of it, and counts
processor time: a call that gives the core to the other side costs only what it did itself. The figures are written
when the program ends or is told to (SIGTERM); those of other threads are not taken.
"""

import cProfile
import os
import runpy
import signal
import sys
import time
from types import FrameType

stats, program, *arguments = sys.argv[1:]
profiler = cProfile.Profile(time.thread_time)


def write(signum: int, frame: FrameType | None) -> None:
    profiler.disable()
    profiler.dump_stats(stats)
    os._exit(0)


def begin(event: str, _: object) -> None:
    global begun
    if not begun and event in ("socket.bind", "socket.connect"):
        begun = True
        profiler.enable()


begun = False
sys.addaudithook(begin)
signal.signal(signal.SIGTERM, write)
sys.argv = [program, *arguments]
sys.path[0] = os.path.dirname(program)
try:
    runpy.run_path(program, run_name="__main__")
finally:
    profiler.disable()
    profiler.dump_stats(stats)
