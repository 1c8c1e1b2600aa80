"""Validation when a client connects, and resources that end with its connection."""

import pyroxfer_core.blocking as pyro


class Door(pyro.Daemon):
    def validateHandshake(self, conn, data):
        if data != {"user": "anna", "token": "1234"}:
            raise ValueError("who are you?")
        return "welcome anna"


class Resource:
    closed = 0

    def close(self):
        Resource.closed += 1


@pyro.expose
class Vault:
    def open(self):
        self.resource = Resource()
        pyro.current_context.track_resource(self.resource)
        return "opened"

    def closed(self):
        return Resource.closed > 0


with Door() as daemon:
    print(daemon.register(Vault(), "vault"), flush=True)
    daemon.requestLoop()
