"""A program for Pyro4 or for our facade: objects and Flame over the pickle family, signed.

Usage: pickled.py stock|ours serve|objects|flame SERIALIZER [LOCATION]

The server prints its location, a client prints what it got as JSON; both libraries must print the same.
"""

import json
import os
import sys

library, role, serializer = sys.argv[1:4]
if library == "stock":
    import Pyro4
    from Pyro4 import errors
    from Pyro4.utils import flame
else:
    from pyroxfer_core import blocking as Pyro4
    from pyroxfer_core import errors
    from pyroxfer_core.blocking import flame

KEY = b"a secret of the test"
Pyro4.config.SERIALIZERS_ACCEPTED = {serializer}
Pyro4.config.SERIALIZER = serializer
Pyro4.config.FLAME_ENABLED = True


@Pyro4.expose
class Objects:
    def echo(self, *args, **kwargs):
        return [args, kwargs]

    def fail(self):
        error = ValueError("boom", 42)
        error.detail = {"k": "v"}
        raise error

    def fail_pyro(self):
        raise errors.NamingError("no such thing")

    def my_uri(self):
        return Pyro4.URI("PYRO:some@localhost:55")

    def child(self):
        child = Objects()
        self._pyroDaemon.register(child)
        return child

    def ask(self, proxy):
        return proxy.echo("asked by the server")

    def numbers(self):
        yield from range(3)


def serve():
    daemon = Pyro4.Daemon()
    daemon._pyroHmacKey = KEY
    daemon.register(Objects(), "objects")
    if serializer == "pickle":
        flame.start(daemon)
    print(daemon.locationStr, flush=True)
    daemon.requestLoop()


def told(function, *args):
    try:
        return repr(function(*args))
    except Exception as error:
        return [
            type(error).__name__,
            repr(error.args),
            repr(getattr(error, "detail", None)),
            hasattr(error, "_pyroTraceback"),
        ]


def objects(location):
    with Pyro4.Proxy("PYRO:objects@" + location) as proxy:
        proxy._pyroHmacKey = KEY
        child = proxy.child()
        child._pyroHmacKey = KEY
        batch = Pyro4.batch(proxy)
        batch.echo(1)
        batch.fail()
        return [
            repr(proxy.echo(1, (2,), {3}, key={"x": (4, 5)}, data=b"bytes", big=2**80)),
            told(proxy.fail),
            told(proxy.fail_pyro),
            str(proxy.my_uri()),
            repr(child.echo("to the child")),
            str(child._pyroUri).startswith("PYRO:obj_"),
            told(lambda: list(batch())),
            list(proxy.numbers()),
            isinstance(told(proxy.echo, lambda: 1), list)
            if serializer == "pickle"
            else proxy.echo(lambda: 5)[0][0](),
        ]


def keyed(stand_in):
    """Stock proxies that arrive in a value do not know the key."""
    stand_in.flameserver._pyroHmacKey = KEY
    return stand_in


def use_flame(location):
    found = []
    with flame.connect(location, KEY) as server:
        math = keyed(server.module("math"))
        found.append(math.sqrt(16))
        path = keyed(server.module("os"))
        found.append(path.path.join("a", "b"))
        found.append(keyed(server.builtin("max"))(1, 5, 3))
        server.execute("import math\nanswer = 41")
        found.append(server.evaluate("answer + 1"))
        server.sendmodule("sent.inner", "def twice(x):\n    return 2 * x\n")
        found.append(keyed(server.module("sent.inner")).twice(21))
        found.append("def getsource" in server.getmodule("inspect"))
        name = os.path.join(os.environ["FLAME_FOLDER"], "file")
        server.sendfile(name, b"contents")
        found.append(server.getfile(name).decode())
        found.append(oct(os.stat(name).st_mode & 0o777))
        found.append(told(server.evaluate, "1 / 0")[0])
        with server.console() as console:
            remote = console.remoteconsole
            remote._pyroHmacKey = KEY
            found.append(remote.get_banner().startswith("Python "))
            found.append(list(remote.push_and_get_output("print(6 * 7)")))
            found.append(list(remote.push_and_get_output("if True:")))
    return found


if role == "serve":
    serve()
else:
    print(json.dumps(objects(sys.argv[4]) if role == "objects" else use_flame(sys.argv[4])))
