"""A stock listener of the blob dispatch example: registers itself for a topic, and is called with its blobs.

Usage: blob_listener.py pyro4|pyro5 DISPATCHER-URI TOPIC SERIALIZER. Answers each line of input with what it heard;
ends with it.
"""

import json
import sys
import threading

library, dispatcher_uri, topic, serializer = sys.argv[1:]
if library == "pyro4":
    import Pyro4
    from Pyro4 import Daemon, Proxy, expose

    Pyro4.config.SERIALIZERS_ACCEPTED = {"serpent", "json", "marshal", "msgpack"}
    Pyro4.config.SERIALIZER = serializer
else:
    import Pyro5
    from Pyro5.api import Daemon, Proxy, expose

    Pyro5.config.SERIALIZER = serializer


class Listener:
    def __init__(self):
        self.heard = []

    def register_with_dispatcher(self):
        with Proxy(dispatcher_uri) as dispatcher:
            dispatcher.register(topic, self)

    @expose
    def process_blob(self, blob):
        self.heard.append([blob.info, list(blob.deserialized())])
        return "heard"


listener = Listener()
daemon = Daemon(host="localhost", port=0)
daemon.register(listener)
listener.register_with_dispatcher()
threading.Thread(target=daemon.requestLoop, daemon=True).start()
print(json.dumps("registered"), flush=True)
for _ in sys.stdin:
    print(json.dumps(listener.heard), flush=True)
