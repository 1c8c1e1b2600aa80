"""A back end of the demo's dispatcher. Usage: backend.py NAME NAMESERVER

Answers who it is and the digest of what came, and registers as demo.NAME in the name server.
"""

import contextlib
import hashlib
import sys

import trio

from pyroxfer_core import Daemon, Proxy, SerializedBlob, behavior, expose

name, name_server = sys.argv[1:]


@expose
@behavior(instance_mode="single")
class Backend:
    async def process(self, blob: SerializedBlob) -> list[str]:
        (data,) = blob.deserialized()
        return [name, hashlib.sha256(data).hexdigest()]


async def main() -> None:
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Backend, "backend")
        async with Proxy(f"PYRO:Pyro.NameServer@{name_server}") as names:
            await names.register(f"demo.{name}", str(uri))
        print("at", uri.location, flush=True)
        await trio.sleep_forever()


with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches every process of the demo
    trio.run(main)
