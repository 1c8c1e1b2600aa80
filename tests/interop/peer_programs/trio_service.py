"""The objects of service.py on our trio daemon, one port for both protocols. Usage: trio_service.py trio [options]

Half of the methods are coroutines and half plain functions, so both ways to run a handler are used.
"""

import argparse
import json
import sys

import trio

from pyroxfer_core import Daemon, Settings, Tokens, current_call, expose, oneway, tls_server_context


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


def read_options():
    options = argparse.ArgumentParser()
    options.add_argument("library", choices=["trio"])
    options.add_argument("--host", default="localhost")
    options.add_argument("--unix")
    options.add_argument("--compression", action="store_true")
    options.add_argument("--key")
    options.add_argument("--tls", nargs=2, metavar=("CERT", "CA"))
    options.add_argument("--mutual", action="store_true")
    options.add_argument("--tokens")
    return options.parse_args()


async def main():
    arguments = read_options()
    settings = Settings(compression=arguments.compression, hmac_key=arguments.key and arguments.key.encode())
    if arguments.tokens:
        settings = settings.with_changes(tokens=Tokens.load(arguments.tokens))
    if arguments.tls:
        certificate, authority = arguments.tls
        context = tls_server_context(certificate, ca=authority if arguments.mutual else None)
        settings = settings.with_changes(ssl_server_context=context)
    place = {"unixsocket": arguments.unix} if arguments.unix else {"host": arguments.host}
    async with Daemon(**place, settings=settings) as daemon:
        child = Child()
        daemon.register(child)
        uris = {
            "shared": str(daemon.register(Shared(child), "shared")),
            "counter": str(daemon.register(Counter, "counter")),
        }
        print(json.dumps(uris), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


trio.run(main)
