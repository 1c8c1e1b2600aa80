"""Our daemon taking blobs. Usage: blob_server.py"""

import trio

from pyroxfer_core import Daemon, SerializedBlob, behavior, expose


@expose
@behavior(instance_mode="single")
class Backend:
    async def process(self, blob: SerializedBlob) -> int:
        return len(blob.deserialized())


async def main() -> None:
    async with Daemon(host="127.0.0.1", port=0) as daemon:
        print(daemon.register(Backend(), "backend"), flush=True)
        await trio.sleep_forever()


trio.run(main)
