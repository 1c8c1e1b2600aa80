import sys

import pyroxfer_core.blocking as pyro

for uri in sys.argv[1:]:
    with pyro.Proxy(uri) as clock:
        print(clock.ticked())
