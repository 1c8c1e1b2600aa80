"""Stock Pyro5's name server with entries in it. Usage: pyro5_ns_server.py ENTRIES"""

import sys

from Pyro5.nameserver import start_ns

uri, daemon, _ = start_ns("localhost", 0, enableBroadcast=False)
for number in range(int(sys.argv[1])):
    daemon.nameserver.register(f"bench.{number}", f"PYRO:thing@localhost:{number % 60_000 + 1}")
print(uri, flush=True)
daemon.requestLoop()
