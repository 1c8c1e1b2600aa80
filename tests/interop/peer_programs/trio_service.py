"""The objects of service.py on our trio daemon, one port for both protocols. Usage: trio_service.py trio [options]

Half of the methods are coroutines and half plain functions, so both ways to run a handler are used.
"""

import argparse
import json
import sys

import trio

from pyroxfer_core import Daemon, Settings, Tokens, behavior, current_call, errors, expose, oneway, tls_server_context
from pyroxfer_core.serializers import register_class_to_dict, register_dict_to_class


class Point:
    """A class that travels by converters."""

    def __init__(self, x, y):
        self.x, self.y = x, y


register_class_to_dict(Point, lambda point: {"__class__": "example.Point", "xy": [point.x, point.y]})
register_dict_to_class("example.Point", lambda name, data: Point(*data["xy"]))


class Resource:
    closed = 0

    def close(self):
        Resource.closed += 1


class Unheard(Exception):
    """An exception class the other side does not have."""


@expose
class Shared:
    """One instance for all callers."""

    def __init__(self, child):
        self._child = child
        self._level = 1
        self._send_note, self._notes = trio.open_memory_channel(100)
        self._closed_streams = 0

    async def echo(self, value):
        return value

    async def add(self, a, b=0):
        return a + b

    def nothing(self):
        pass

    def text(self, length):
        return "x" * length

    def divide(self, a, b):
        return a / b

    async def refuse(self, text):
        raise ValueError(text)

    async def raise_unheard(self):
        raise Unheard("never heard of")

    async def fail(self, how):
        error = ValueError("odd")
        error.detail = {"k": "v"}
        raise {
            "args": ValueError("boom", 42),
            "attributes": error,
            "key": KeyError("key"),
            "pyro": errors.NamingError("no such name"),
        }[how]

    async def track(self):
        self._resource = Resource()
        current_call.track_resource(self._resource)

    async def resources_closed(self):
        return Resource.closed

    @oneway
    async def note_context(self):
        user = bytes(current_call.annotations["USER"]).decode()
        await self._send_note.send(f"{current_call.correlation_id} {user}")

    async def double(self, point):
        return Point(2 * point.x, 2 * point.y)

    async def call_back(self, listener):
        async with listener:
            found = [await listener.add(2, 3)]
            try:
                await listener.refuse("no")
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

    @oneway
    async def note(self, text):
        await self._send_note.send(text)

    async def wait_for_note(self, seconds):
        with trio.move_on_after(seconds):
            return await self._notes.receive()

    async def count(self, end):
        for number in range(end):
            yield number

    def break_after(self, end):
        yield from range(end)
        raise ValueError("stream broke")

    async def endless(self):
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            self._closed_streams += 1

    async def streams_closed(self):
        return self._closed_streams

    def array(self):
        import numpy  # for the test of it alone

        return numpy.arange(3)

    async def exchange(self):
        """Answer the user's annotations and send one back."""
        current_call.response_annotations["RESP"] = b"from the service"
        received = current_call.annotations
        return {key: bytes(value).decode() for key, value in received.items() if key.startswith("U")}

    def correlation(self):
        return str(current_call.correlation_id)

    def receive(self, blob):
        return [blob.info, blob.deserialized()]

    async def child(self):
        """An object of its own, which arrives as a proxy."""
        return self._child


class Child:
    @expose
    async def name(self):
        return "child"

    def hidden(self):
        return "must not be reachable"


@expose
class Counter:
    """Session mode, the default of a registered class: one instance per connection."""

    def __init__(self):
        self.value = 0

    async def increment(self):
        self.value += 1
        return self.value


@expose
@behavior(instance_mode="single")
class Single(Counter):
    async def reset(self):
        self.value = 0


def start_at_ten(clazz):
    counter = clazz()
    counter.value = 10
    return counter


@expose
@behavior(instance_mode="percall", instance_creator=start_at_ten)
class PerCall(Counter):
    pass


class Door(Daemon):
    """Answers some clients in a way of its own."""

    async def validateHandshake(self, conn, data):
        if data == "stranger":
            raise ValueError("who are you?")
        return "welcome anna" if data == {"user": "anna"} else "hello"


def read_options():
    options = argparse.ArgumentParser()
    options.add_argument("library", choices=["trio"])
    options.add_argument("--host", default="localhost")
    options.add_argument("--unix")
    options.add_argument("--nathost")
    options.add_argument("--compression", action="store_true")
    options.add_argument("--key")
    options.add_argument("--tls", nargs=2, metavar=("CERT", "CA"))
    options.add_argument("--mutual", action="store_true")
    options.add_argument("--tokens")
    options.add_argument("--config", type=json.loads, default={})
    return options.parse_args()


async def main():
    arguments = read_options()
    settings = Settings(compression=arguments.compression, hmac_key=arguments.key and arguments.key.encode())
    names = {"ITER_STREAM_LINGER": "stream_linger_s", "ITER_STREAM_LIFETIME": "stream_lifetime_s"}
    settings = settings.with_changes(**{names[item]: value for item, value in arguments.config.items()})
    if arguments.tokens:
        settings = settings.with_changes(tokens=Tokens.load(arguments.tokens))
    if arguments.tls:
        certificate, authority = arguments.tls
        context = tls_server_context(certificate, ca=authority if arguments.mutual else None)
        settings = settings.with_changes(ssl_server_context=context)
    place = {"unixsocket": arguments.unix} if arguments.unix else {"host": arguments.host}
    if arguments.nathost:
        place.update(nathost=arguments.nathost, natport=0)
    async with (Daemon if arguments.tokens else Door)(**place, settings=settings) as daemon:
        child = Child()
        daemon.register(child)
        uris = {
            "shared": str(daemon.register(Shared(child), "shared")),
            "single": str(daemon.register(Single, "single")),
            "percall": str(daemon.register(PerCall, "percall")),
            "counter": str(daemon.register(Counter, "counter")),
        }
        print(json.dumps(uris), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


trio.run(main)
