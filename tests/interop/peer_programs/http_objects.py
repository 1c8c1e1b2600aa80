"""Objects of a stock Pyro5 daemon for the gateways: registers them at the name server whose port is the argument."""

import datetime
import decimal
import json
import sys
import uuid

import Pyro5.api


@Pyro5.api.expose
class Things:
    calls = 0

    def echo(self, message):
        return message

    def nothing(self):
        return None

    def types(self):
        return {
            "tuple": (1, "x"),
            "set": {1},
            "float": 1.5,
            "big": 2**70,
            "text": "ü",
            "nested": [{"a": [None, True]}],
            "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
            "id": uuid.UUID("11112222-1111-2222-3333-222244449999"),
            "decimal": decimal.Decimal("1.50"),
        }

    def raw(self):
        return b"\0\xff"

    def uri(self):
        return Pyro5.api.URI("PYRO:x@localhost:1")

    def fail(self, text):
        raise ValueError(text, 3)

    def zero(self):
        return 1 // 0

    @Pyro5.api.oneway
    def note(self, text):
        Things.calls += 1

    def noted(self):
        return Things.calls

    def count(self, to):
        yield from range(int(to))

    def correlation(self):
        return str(Pyro5.api.current_context.correlation_id)

    @property
    def colour(self):
        return "blue"


daemon = Pyro5.api.Daemon()
uri = daemon.register(Things)
with Pyro5.api.locate_ns("127.0.0.1", int(sys.argv[1])) as ns:
    for name in ("http.things", "private.things", "http.a/b"):
        ns.register(name, uri)
print(json.dumps(str(uri)), flush=True)
daemon.requestLoop()
