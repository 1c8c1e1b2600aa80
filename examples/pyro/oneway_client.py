import sys

import pyroxfer_core.blocking as pyro

with pyro.Proxy(sys.argv[1]) as log:
    print([log.write(line) for line in ("one", "two", "three")])
    print(log.read())
