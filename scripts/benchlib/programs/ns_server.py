"""Our name server with entries in it. Usage: ns_server.py memory|sql ENTRIES"""

import sys
import tempfile
from pathlib import Path

import trio

from pyroxfer_core.nameserver import Entry, open_registry, start_ns


async def main() -> None:
    entries = {f"bench.{number}": f"PYRO:thing@localhost:{number % 60_000 + 1}" for number in range(int(sys.argv[2]))}
    with tempfile.TemporaryDirectory() as folder:
        storage = "memory" if sys.argv[1] == "memory" else f"sql:{Path(folder) / 'names.sqlite'}"
        if sys.argv[1] == "sql":
            registry = open_registry(storage)
            await registry.update(entries, lambda name, _: Entry.single(entries[name]))
            await registry.aclose()
        async with start_ns("localhost", 0, storage=storage, broadcast=False) as running:
            if sys.argv[1] == "memory":
                for name, uri in entries.items():
                    await running.name_server.register(name, uri)
            print(running.uri, flush=True)
            await trio.sleep_forever()


trio.run(main)
