"""Many proxies of ours, each with a connection of its own on which it has made one call.

Usage: connections_proxies.py URI CONNECTIONS add|blob

Prints `held` and waits for a line, so that the server can be weighed.
"""

import resource
import sys

import trio

from pyroxfer_core import Proxy, SerializedBlob

uri, count, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 2 * count + 100, hard))


async def main() -> None:
    proxies = [Proxy(uri) for _ in range(count)]
    for proxy in proxies:
        if what == "blob":
            assert await proxy.process(SerializedBlob("topic", "x")) == 1
        else:
            assert await proxy.add(1, 2) == 3
    print("held", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    print("{}", flush=True)
    for proxy in proxies:
        proxy._pyroRelease()


trio.run(main)
