"""Many files at once. Usage: workers_files.py ADDRESS upload|download FOLDER COUNT"""

import json
import sys
import time
from pathlib import Path

import trio

import pyroxfer

address, direction, folder, count = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])


async def move(name: str) -> None:
    if direction == "upload":
        await pyroxfer.send(str(folder / name), f"{address}/{name}", durability="none", resume=False)
    else:
        await pyroxfer.get(f"{address}/{name}", str(folder / name), durability="none", resume=False)


async def main() -> None:
    begin = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(move, f"f{number}")
    seconds = time.perf_counter() - begin
    moved = sum((folder / f"f{number}").stat().st_size for number in range(count))
    print(json.dumps({"bytes": moved, "seconds": seconds}))


trio.run(main)
