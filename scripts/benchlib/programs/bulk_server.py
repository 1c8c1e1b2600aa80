"""Our trio daemon taking and giving large bytes, and items of streams."""

from collections.abc import AsyncIterator, Iterator

import trio

from pyroxfer_core import Daemon, behavior, expose


@expose
@behavior(instance_mode="single")
class Bulk:
    def __init__(self) -> None:
        self.data = b""

    async def take(self, data: bytes) -> int:
        self.data = data
        return len(data)

    async def give(self) -> bytes:
        return self.data

    async def items(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    def plain_items(self, count: int) -> Iterator[int]:
        yield from range(count)


async def main() -> None:
    async with Daemon(host="127.0.0.1") as daemon:
        print(daemon.register(Bulk, "bulk"), flush=True)
        await trio.sleep_forever()


trio.run(main)
