import sys

import pyroxfer_core.blocking as pyro

for uri in sys.argv[1:]:
    with pyro.Proxy(uri) as target:
        print(target.store(pyro.SerializedBlob("invoice", [2024, "paid"])))
