"""Our trio daemon, one object with one small coroutine method."""

import trio

from pyroxfer_core import Daemon, behavior, expose


@expose
@behavior(instance_mode="single")
class Adder:
    async def add(self, a: int, b: int) -> int:
        return a + b


async def main() -> None:
    async with Daemon(host="127.0.0.1") as daemon:
        print(daemon.register(Adder, "adder"), flush=True)
        await trio.sleep_forever()


trio.run(main)
