"""Many downloads of one file. Usage: scale_transfers.py ADDRESS COUNT AT_ONCE FOLDER

Prints the bytes of all, the seconds until the last was committed, and the seconds that one took: a tenth of them less
than `quick_s`, a tenth more than `slow_s`.
"""

import json
import statistics
import sys
import time

import trio

import pyroxfer

address, count, at_once, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


async def main() -> None:
    took: list[float] = []
    moved = 0
    numbers = iter(range(count))

    async def fetch() -> None:
        nonlocal moved
        for number in numbers:
            begin = time.perf_counter()
            receipt = await pyroxfer.get(address, f"{folder}/{number}", durability="none")
            assert isinstance(receipt, pyroxfer.Receipt)
            took.append(time.perf_counter() - begin)
            moved += receipt.size

    begin = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(fetch)
    seconds = time.perf_counter() - begin
    tenths = statistics.quantiles(took, n=10)
    print(json.dumps({"bytes": moved, "seconds": seconds, "quick_s": tenths[0], "slow_s": tenths[-1]}))


trio.run(main)
