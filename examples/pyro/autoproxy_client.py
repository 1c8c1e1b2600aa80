import sys

import pyroxfer_core.blocking as pyro

with pyro.Proxy(sys.argv[1]) as factory:
    for name in ("spanner", "hammer"):
        with factory.make(name) as item:
            print(type(item).__name__, item.name)
            try:
                print(len(item))
            except Exception as error:
                print(type(error).__name__)
