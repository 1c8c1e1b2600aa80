"""Many stock Pyro5 proxies, each with a connection of its own on which it has made one call with a blob.

Usage: pyro5_connections_proxies.py URI CONNECTIONS

Prints `held` and waits for a line, so that the dispatcher can be weighed.
"""

import resource
import sys

import Pyro5.api

uri, count = sys.argv[1], int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 2 * count + 100, hard))
proxies = [Pyro5.api.Proxy(uri) for _ in range(count)]
for proxy in proxies:
    assert proxy.process(Pyro5.api.SerializedBlob("topic", "x")) == 1
print("held", flush=True)
sys.stdin.readline()
print("{}")
