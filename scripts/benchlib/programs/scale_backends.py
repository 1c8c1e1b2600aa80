"""Back ends of a dispatcher, each a daemon with a port of its own, in one process. Usage: scale_backends.py COUNT

Prints their URIs, one a line; each gives the number in a blob back.
"""

import resource
import sys
from contextlib import AsyncExitStack

import trio

from pyroxfer_core import Daemon, SerializedBlob, behavior, expose

count = int(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@expose
@behavior(instance_mode="single")
class Backend:
    async def process(self, blob: SerializedBlob) -> int:
        (number,) = blob.deserialized()
        return number


async def main() -> None:
    async with AsyncExitStack() as running:
        uris = []
        for _ in range(count):
            daemon = await running.enter_async_context(Daemon(host="127.0.0.1"))
            uris.append(str(daemon.register(Backend, "backend")))
        print("\n".join(uris), flush=True)
        print("all", flush=True)
        await trio.sleep_forever()


trio.run(main)
