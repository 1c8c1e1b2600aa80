"""The call context: annotations both ways, and a correlation id that follows the work."""

import pyroxfer_core.blocking as pyro


@pyro.expose
class Tracked:
    def handle(self):
        context = pyro.current_context
        tenant = bytes(context.annotations["TENT"]).decode()
        context.response_annotations = {"DONE": tenant[::-1].encode()}
        return [tenant, str(context.correlation_id), context.seq > 0, context.client is not None]


with pyro.Daemon() as daemon:
    print(daemon.register(Tracked, "tracked"), flush=True)
    daemon.requestLoop()
