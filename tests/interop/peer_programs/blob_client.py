"""A stock client for blobs: a question is {"uri", "serializer", "compress", "info", "data"}; ends with its input.

Usage: blob_client.py pyro4|pyro5
"""

import json
import sys

library = sys.argv[1]
if library == "pyro4":
    import Pyro4
    from Pyro4.core import Proxy, SerializedBlob

    config = Pyro4.config
else:
    import Pyro5
    from Pyro5.api import Proxy, SerializedBlob

    config = Pyro5.config


def failing(call, *args):
    try:
        call(*args)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def play(question):
    config.SERIALIZER = question["serializer"]
    config.COMPRESSION = question.get("compress", False)
    info, data = question["info"], question["data"]
    with Proxy(question["uri"]) as proxy:
        seen = {"process": [proxy.process(SerializedBlob(info, data)) for _ in range(2)]}
        seen["fail"] = failing(proxy.fail, SerializedBlob(info, data))
        seen["notify"] = proxy.notify(SerializedBlob(info, data))
        seen["stream"] = list(proxy.stream(SerializedBlob(info, data)))
        seen["no route"] = failing(proxy.process, SerializedBlob("nowhere", data))
        seen["no blob"] = failing(proxy.process, 1)
        seen["unknown method"] = failing(lambda: proxy.nonsense(SerializedBlob(info, data)))
        seen["after"] = proxy.process(SerializedBlob(info, data))
    return seen


def call(question):
    config.SERIALIZER = question["serializer"]
    with Proxy(question["uri"]) as proxy:
        return [failing(lambda: proxy.process(SerializedBlob(question["info"], question["data"]))) for _ in range(2)]


for line in sys.stdin:
    question = json.loads(line)
    play_or_call = call if question.get("just call") else play
    print(json.dumps(play_or_call(question)), flush=True)
