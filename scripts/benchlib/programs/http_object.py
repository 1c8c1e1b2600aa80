"""Our trio daemon, one object for a gateway. Usage: http_object.py NAME_SERVER_PORT"""

import sys

import trio

from pyroxfer_core import Daemon, behavior, expose, locate_ns


@expose
@behavior(instance_mode="single")
class Adder:
    async def add(self, a: str, b: str) -> str:
        return a + b


async def main() -> None:
    async with Daemon(host="127.0.0.1") as daemon:
        uri = daemon.register(Adder, "adder")
        async with await locate_ns("127.0.0.1", int(sys.argv[1])) as ns:
            await ns.register("http.adder", str(uri))
        print(uri, flush=True)
        await trio.sleep_forever()


trio.run(main)
