"""Many downloads of one file at once. Usage: scale_transfers.py ADDRESS COUNT FOLDER

Prints the bytes of all, the seconds until the last was committed, and those until the first was.
"""

import json
import sys
import time

import trio

import pyroxfer

address, count, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]


async def main() -> None:
    done: list[tuple[float, int]] = []
    begin = time.perf_counter()

    async def fetch(number: int) -> None:
        receipt = await pyroxfer.get(address, f"{folder}/{number}", durability="none")
        assert isinstance(receipt, pyroxfer.Receipt)
        done.append((time.perf_counter() - begin, receipt.size))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(fetch, number)
    times = sorted(seconds for seconds, _ in done)
    print(json.dumps({"bytes": sum(size for _, size in done), "seconds": times[-1], "first_s": times[0]}))


trio.run(main)
