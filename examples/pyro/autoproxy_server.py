"""A factory: objects that are served arrive as proxies."""

import pyroxfer_core.blocking as pyro


@pyro.expose
class Item:
    def __init__(self, name):
        self._name = name

    @property
    def name(self):
        return self._name

    def __len__(self):
        return len(self._name)


@pyro.expose
class Factory:
    def make(self, name):
        item = Item(name)
        self._pyroDaemon.register(item)
        return item


with pyro.Daemon() as daemon:
    print(daemon.register(Factory, "factory"), flush=True)
    daemon.requestLoop()
