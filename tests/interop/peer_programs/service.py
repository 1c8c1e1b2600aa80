"""A plain Pyro program: a daemon with one object of everything. Usage: service.py pyro4|pyro5|pyroxfer [options]

`pyroxfer` runs the very same program on our blocking facade: one import changed.
Prints one JSON line with the URIs, then serves until standard input ends (so it never outlives the test run).
"""

import argparse
import importlib
import json
import os
import sys
import threading

options = argparse.ArgumentParser()
options.add_argument("library", choices=["pyro4", "pyro5", "pyroxfer"])
options.add_argument("--server", choices=["thread", "multiplex"], default="thread")
options.add_argument("--host", default="localhost")
options.add_argument("--unix")
options.add_argument("--nathost")
options.add_argument("--compression", action="store_true")
options.add_argument("--key")
options.add_argument("--config", type=json.loads, default={})
arguments = options.parse_args()

modules = {"pyro4": "Pyro4", "pyro5": "Pyro5.api", "pyroxfer": "pyroxfer_core.blocking"}
pyro = importlib.import_module(modules[arguments.library])
pyro.config.SERVERTYPE = arguments.server
pyro.config.COMPRESSION = arguments.compression
for item, value in arguments.config.items():
    setattr(pyro.config, item, value)
if arguments.library == "pyro4":
    pyro.config.SERIALIZERS_ACCEPTED = {"serpent", "json", "marshal", "msgpack"}


errors = importlib.import_module(
    {"pyro4": "Pyro4.errors", "pyro5": "Pyro5.errors", "pyroxfer": "pyroxfer_core.errors"}[arguments.library]
)
converters = pyro.util.SerializerBase if arguments.library == "pyro4" else pyro


class Point:
    """A class that travels by converters."""

    def __init__(self, x, y):
        self.x, self.y = x, y


converters.register_class_to_dict(Point, lambda point: {"__class__": "example.Point", "xy": [point.x, point.y]})
converters.register_dict_to_class("example.Point", lambda name, data: Point(*data["xy"]))


class Resource:
    closed = 0

    def close(self):
        Resource.closed += 1


class Unheard(Exception):
    """An exception class the other side does not have."""


@pyro.expose
class Shared:
    """One instance for all callers."""

    def __init__(self):
        self._level = 1
        self._notes = []
        self._noted = threading.Event()
        self.closed_streams = 0

    def echo(self, value):
        return value

    def add(self, a, b=0):
        return a + b

    def nothing(self):
        pass

    def text(self, length):
        return "x" * length

    def divide(self, a, b):
        return a / b

    def refuse(self, text):
        raise ValueError(text)

    def raise_unheard(self):
        raise Unheard("never heard of")

    def fail(self, how):
        error = ValueError("odd")
        error.detail = {"k": "v"}
        raise {
            "args": ValueError("boom", 42),
            "attributes": error,
            "key": KeyError("key"),
            "pyro": errors.NamingError("no such name"),
        }[how]

    def track(self):
        self._resource = Resource()
        pyro.current_context.track_resource(self._resource)

    def resources_closed(self):
        return Resource.closed

    @pyro.oneway
    def note_context(self):
        context = pyro.current_context
        self.note(f"{context.correlation_id} {bytes(context.annotations['USER']).decode()}")

    def double(self, point):
        return Point(2 * point.x, 2 * point.y)

    def call_back(self, listener):
        found = [listener.add(2, 3)]
        try:
            listener.refuse("no")
        except ValueError as error:
            found += [type(error).__name__, str(error)]
        return found

    @property
    def level(self):
        return self._level

    @level.setter
    def level(self, value):
        self._level = value

    @property
    def fixed(self):
        return "cannot be set"

    @pyro.oneway
    def note(self, text):
        self._notes.append(text)
        self._noted.set()

    def wait_for_note(self, seconds):
        heard = self._noted.wait(seconds)
        self._noted.clear()
        return self._notes[-1] if heard else None

    def count(self, end):
        yield from range(end)

    def break_after(self, end):
        yield from range(end)
        raise ValueError("stream broke")

    def endless(self):
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            self.closed_streams += 1

    def streams_closed(self):
        return self.closed_streams

    def array(self):
        import numpy  # for the test of it alone

        return numpy.arange(3)

    def exchange(self):
        """Answer the user's annotations and send one back."""
        received = pyro.current_context.annotations
        pyro.current_context.response_annotations = {"RESP": b"from the service"}
        return {key: bytes(value).decode() for key, value in received.items() if key.startswith("U")}

    def correlation(self):
        return str(pyro.current_context.correlation_id)

    def receive(self, blob):
        return [blob.info, blob.deserialized()]

    def child(self):
        """An object of its own, which arrives as a proxy. A new one each time: marshal spoils what it fails on."""
        child = Child()
        daemon.register(child)
        return child


class Child:
    @pyro.expose
    def name(self):
        return "child"

    def hidden(self):
        return "must not be reachable"


@pyro.expose
class Counter:
    """Session mode, the default of a registered class: one instance per connection."""

    def __init__(self):
        self.value = 0

    def increment(self):
        self.value += 1
        return self.value


@pyro.expose
@pyro.behavior(instance_mode="single")
class Single(Counter):
    def reset(self):
        self.value = 0


def start_at_ten(clazz):
    counter = clazz()
    counter.value = 10
    return counter


@pyro.expose
@pyro.behavior(instance_mode="percall", instance_creator=start_at_ten)
class PerCall(Counter):
    pass


class Door(pyro.Daemon):
    """Answers some clients in a way of its own."""

    def validateHandshake(self, conn, data):
        if data == "stranger":
            raise ValueError("who are you?")
        return "welcome anna" if data == {"user": "anna"} else "hello"


def end_with_parent():
    sys.stdin.read()
    os._exit(0)


daemon = (
    Door(unixsocket=arguments.unix)
    if arguments.unix
    else Door(host=arguments.host, nathost=arguments.nathost, natport=0)
    if arguments.nathost
    else Door(host=arguments.host)
)
if arguments.key:
    daemon._pyroHmacKey = arguments.key.encode()
uris = {
    "shared": str(daemon.register(Shared(), "shared")),
    "single": str(daemon.register(Single, "single")),
    "percall": str(daemon.register(PerCall, "percall")),
    "counter": str(daemon.register(Counter, "counter")),
}
print(json.dumps(uris), flush=True)
threading.Thread(target=end_with_parent, daemon=True).start()
daemon.requestLoop()
