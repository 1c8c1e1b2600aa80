import sys

import pyroxfer_core.blocking as pyro

for mode, uri in zip(("single", "session", "percall"), sys.argv[1:], strict=True):
    with pyro.Proxy(uri) as first, pyro.Proxy(uri) as second:
        start = first.increment()
        values = [first.increment() - start, second.increment() - start, first.increment() - start]
        print(mode, values)
