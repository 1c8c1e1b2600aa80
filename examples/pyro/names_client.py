import sys

import pyroxfer_core.blocking as pyro

host, port, uri = sys.argv[1:]
with pyro.locate_ns(host, int(port)) as names:
    names.register("town.shop", uri, metadata={"kind:shop"})
    print(sorted(names.list(prefix="town.")), names.count())
    print(pyro.resolve(f"PYRONAME:town.shop@{host}:{port}") == pyro.URI(uri))
    with pyro.Proxy(f"PYROMETA:kind:shop@{host}:{port}") as shop:
        print(shop.open())
    print(names.remove("town.shop"), sorted(names.list(prefix="town.")))
