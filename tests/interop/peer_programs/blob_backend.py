"""A stock backend for blobs. Prints its URI as JSON; answers each line of input with what it ran; ends with it.

Usage: blob_backend.py pyro4|pyro5 NAME
"""

import json
import sys
import threading
import zlib

library, name = sys.argv[1:]
if library == "pyro4":
    import Pyro4
    from Pyro4 import Daemon, expose

    Pyro4.config.SERIALIZERS_ACCEPTED = {"serpent", "json", "marshal", "msgpack"}
else:
    from Pyro5.api import Daemon, expose

ran = []


def data_of(blob):
    """The arguments. Both libraries give the text 'params' for json, so the body is read here."""
    body = bytes(blob._data.data)
    if body[:1] == b"x":  # Pyro4 keeps it compressed; no serializer's bodies begin like this
        body = zlib.decompress(body)
    if body.startswith(b'{"'):
        return json.loads(body)["params"]
    return blob.deserialized()


@expose
class Backend:
    def process(self, blob):
        ran.append(["process", blob.info])
        return {"backend": name, "info": blob.info, "data": list(data_of(blob))}

    def fail(self, blob):
        ran.append(["fail", blob.info])
        raise ValueError("not today")

    def notify(self, blob):
        ran.append(["notify", blob.info])

    def stream(self, blob):
        for number in range(3):
            yield [name, number]


daemon = Daemon(host="localhost", port=0)
uri = daemon.register(Backend(), "blob.backend")
threading.Thread(target=daemon.requestLoop, daemon=True).start()
print(json.dumps({"uri": str(uri)}), flush=True)
for _ in sys.stdin:
    print(json.dumps(ran), flush=True)
