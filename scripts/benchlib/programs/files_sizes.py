"""Our library fetching files of one size after another over every channel.

Usage: files_sizes.py ADDRESS FOLDER REPETITIONS SIZE...

For each size, in turns and in another order each time: iter, annot, raw and auto. The file `SIZE` lies at the
address. Prints the seconds of each, by size and channel.
"""

import json
import random
import sys
import time
from pathlib import Path

import trio

import pyroxfer

address, folder, repetitions, sizes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
CHANNELS = ["iter", "annot", "raw", "auto"]


async def fetch(size: str, channel: str) -> float:
    target = folder / "got"
    begin = time.perf_counter()
    await pyroxfer.get(f"{address}/{size}", target, channel=channel, durability="none")
    took = time.perf_counter() - begin
    target.unlink()
    return took


async def main() -> None:
    order = random.Random(1)
    found: dict[str, dict[str, list[float]]] = {}
    for size in sizes:
        times = found[size] = {channel: [] for channel in CHANNELS}
        for repetition in range(repetitions + 1):
            for channel in order.sample(CHANNELS, len(CHANNELS)):
                took = await fetch(size, channel)
                if repetition:  # the first turn warms up
                    times[channel].append(took)
    print(json.dumps(found))


trio.run(main)
