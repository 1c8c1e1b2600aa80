"""Our trio daemon taking and giving large bytes."""

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


async def main() -> None:
    async with Daemon(host="127.0.0.1") as daemon:
        print(daemon.register(Bulk, "bulk"), flush=True)
        await trio.sleep_forever()


trio.run(main)
