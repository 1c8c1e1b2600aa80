"""Our library moving one file. Usage: files_client.py ADDRESS upload|download CHANNEL PATH [CA]

With the file of an authority it speaks TLS.

Nothing is synced, as nothing is in the peers; digests are on. The time is the whole call, connecting included, once
everything is imported.
"""

import json
import sys
import time

import trio

from pyroxfer import Receipt, get, send
from pyroxfer_core import Settings, tls_client_context

address, direction, channel, path, *authority = sys.argv[1:]
settings = Settings(ssl_client_context=tls_client_context(authority[0])) if authority else Settings()


async def main() -> None:
    begin, cpu = time.perf_counter(), time.process_time()
    if direction == "upload":
        receipt = await send(path, address, channel=channel, durability="none", settings=settings)
    else:
        receipt = await get(address, path, channel=channel, durability="none", settings=settings)
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    assert isinstance(receipt, Receipt)
    assert receipt.channel == channel, f"it went over {receipt.channel}: {receipt.reason}"
    print(json.dumps({"bytes": receipt.size, "seconds": seconds, "cpu_s": cpu_s}))


trio.run(main)
