"""A failure shown with what happened at both ends."""

import pyroxfer_core.blocking as pyro


class Shortage(Exception):
    pass


pyro.util.SerializerBase.register_class_to_dict(
    Shortage, lambda error: {"__class__": "example.Shortage", "missing": error.args[0]}
)


@pyro.expose
class Store:
    def take(self, wanted):
        return self.count(wanted)

    def count(self, wanted):
        if wanted > 100:
            raise Shortage(wanted - 100)
        return 100 // wanted


with pyro.Daemon() as daemon:
    print(daemon.register(Store, "store"), flush=True)
    daemon.requestLoop()
