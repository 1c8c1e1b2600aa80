"""The scenarios of the table, played with our trio proxy."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from peers import Service

from pyroxfer_core import BatchProxy, Daemon, Proxy, SerializedBlob, Settings, callback, errors, expose
from pyroxfer_core.serializers import register_class_to_dict, register_dict_to_class

VALUES: dict[str, list[Any]] = {
    "serpent": [None, True, 7, -(2**70), 2.5, "täxt", (1, "two"), {"k": [1, 2]}, {1, 2}, 1 + 2j],
    "json": [None, True, 7, -(2**70), 2.5, "täxt", [1, "two"], {"k": [1, 2]}],
    "marshal": [None, True, 7, -(2**70), 2.5, "täxt", (1, "two"), {"k": [1, 2]}, {1, 2}, 1 + 2j, b"\0\xff"],
    "msgpack": [None, True, 7, -(2**70), 2.5, "täxt", [1, "two"], {"k": [1, 2]}, b"\0\xff", 1 + 2j],
}

Scenario = Callable[[Proxy, Service, Settings], Awaitable[Any]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Puts a function into the table under its name (without the underscore that keeps clear of other names)."""
    SCENARIOS[function.__name__.rstrip("_")] = function
    return function


@scenario
async def echo(proxy: Proxy, service: Service, settings: Settings) -> Any:
    """The values that came back as something else: none should."""
    assert settings.serializer is not None
    pairs = [(value, await proxy.echo(value)) for value in VALUES[settings.serializer]]
    return [f"{sent!r} -> {got!r}" for sent, got in pairs if type(sent) is not type(got) or sent != got]


@scenario
async def calls(proxy: Proxy, service: Service, settings: Settings) -> Any:
    some = [await proxy.add(1, 2), await proxy.add(1, b=5), await proxy.add(a=3), await proxy.nothing()]
    return [*some, len(await proxy.text(300_000))]


@scenario
async def attributes(proxy: Proxy, service: Service, settings: Settings) -> Any:
    before = await proxy.level
    await proxy._pyroSet("level", before + 41)
    after = await proxy.level
    await proxy._pyroSet("level", before)
    return [before, after, await proxy.fixed]


@scenario
async def attribute_errors(proxy: Proxy, service: Service, settings: Settings) -> Any:
    async def write() -> None:
        await proxy._pyroSet("fixed", 1)

    async def unknown() -> None:
        await proxy.unknown

    async def private() -> None:
        await proxy._hidden()

    found = []
    for attempt in (write, unknown, private):
        try:
            await attempt()
            found.append("no error")
        except AttributeError:
            found.append("AttributeError")
    return found


@scenario
async def metadata(proxy: Proxy, service: Service, settings: Settings) -> Any:
    await proxy._pyroBind()
    shown = proxy._pyroMetadata
    assert shown is not None
    return [sorted({"add", "count", "note", "echo"} & shown.methods), sorted(shown.oneway), sorted(shown.attrs)]


@scenario
async def oneway(proxy: Proxy, service: Service, settings: Settings) -> Any:
    return [await proxy.note("heard"), await proxy.wait_for_note(5)]


@scenario
async def exceptions(proxy: Proxy, service: Service, settings: Settings) -> Any:
    found = []
    for attempt in (proxy.divide(1, 0), proxy.refuse("no")):
        try:
            await attempt
        except (ZeroDivisionError, ValueError) as error:
            trace = "".join(getattr(error, "_pyroTraceback", []))
            found.append([type(error).__name__, str(error), type(error).__name__ in trace])
    return found


@scenario
async def unheard_exception(proxy: Proxy, service: Service, settings: Settings) -> Any:
    try:
        await proxy.raise_unheard()
    except errors.PyroError as error:
        return ["Unheard" in str(error), await proxy.add(1, 1)]
    return "no error"


@scenario
async def exception_shapes(proxy: Proxy, service: Service, settings: Settings) -> Any:
    found = []
    for how in ("args", "attributes", "key", "pyro"):
        try:
            await proxy.fail(how)
        except Exception as error:
            found.append([type(error).__name__, list(error.args), getattr(error, "detail", None)])
    return found


@scenario
async def stream(proxy: Proxy, service: Service, settings: Settings) -> Any:
    return [item async for item in proxy.count(5)]


@scenario
async def stream_error(proxy: Proxy, service: Service, settings: Settings) -> Any:
    items = []
    try:
        async for item in proxy.break_after(2):
            items.append(item)
    except ValueError as error:
        return [items, str(error)]
    return "no error"


@scenario
async def stream_early_close(proxy: Proxy, service: Service, settings: Settings) -> Any:
    before = await proxy.streams_closed()
    items = await proxy.endless()
    first = [await anext(items), await anext(items)]
    await items.aclose()
    closed = before
    while closed == before:  # a remote question each time, so nothing spins
        closed = await proxy.streams_closed()
    return first


@scenario
async def batch(proxy: Proxy, service: Service, settings: Settings) -> Any:
    batched = BatchProxy(proxy)
    batched.add(1, 2)
    batched.echo("x")
    batched.divide(1, 0)
    batched.add(5, 5)
    found: list[Any] = []
    try:
        async for result in batched():
            found.append(result)
    except ZeroDivisionError:
        found.append("ZeroDivisionError")
    return found


@scenario
async def batch_oneway(proxy: Proxy, service: Service, settings: Settings) -> Any:
    batched = BatchProxy(proxy)
    batched.note("from a batch")
    return [await batched(oneway=True), await proxy.wait_for_note(5)]


@scenario
async def annotations_(proxy: Proxy, service: Service, settings: Settings) -> Any:
    call = proxy.exchange.options(annotations={"USER": b"hello", "UTWO": b"again"})()
    received = await call
    return [received, bytes(call.response_annotations["RESP"]).decode()]


@scenario
async def correlation(proxy: Proxy, service: Service, settings: Settings) -> Any:
    mine = uuid.uuid4()
    call = proxy.correlation.options(correlation_id=mine)()
    return await call == str(mine)


@scenario
async def blob(proxy: Proxy, service: Service, settings: Settings) -> Any:
    return await proxy.receive(SerializedBlob("label", [1, "two"]))


@scenario
async def blob_value(proxy: Proxy, service: Service, settings: Settings) -> Any:
    return [await proxy.receive(SerializedBlob("label", data)) for data in ({"k": [1, "two"]}, 7)]


@scenario
async def session(proxy: Proxy, service: Service, settings: Settings) -> Any:
    counter = service.uris["counter"]
    async with Proxy(counter, settings=settings) as first, Proxy(counter, settings=settings) as second:
        return [await first.increment(), await first.increment(), await second.increment()]


@scenario
async def instance_single(proxy: Proxy, service: Service, settings: Settings) -> Any:
    single = service.uris["single"]
    async with Proxy(single, settings=settings) as first, Proxy(single, settings=settings) as second:
        await first.reset()
        return [await first.increment(), await second.increment(), await first.increment()]


@scenario
async def instance_percall(proxy: Proxy, service: Service, settings: Settings) -> Any:
    percall = service.uris["percall"]
    async with Proxy(percall, settings=settings) as first, Proxy(percall, settings=settings) as second:
        return [await first.increment(), await first.increment(), await second.increment()]


@scenario
async def resource_tracking(proxy: Proxy, service: Service, settings: Settings) -> Any:
    before = await proxy.resources_closed()
    async with Proxy(service.uri, settings=settings) as other:
        await other.track()
    while await proxy.resources_closed() == before:  # a remote question each time
        pass
    return True


class Visitor(Proxy):
    """Remembers what the daemon answered when it connected."""

    _pyroAnswered: Any = None

    def _pyroValidateHandshake(self, response: Any) -> None:
        self._pyroAnswered = response


@scenario
async def handshake(proxy: Proxy, service: Service, settings: Settings) -> Any:
    anna, stranger = Visitor(service.uri, settings=settings), Visitor(service.uri, settings=settings)
    anna._pyroHandshake, stranger._pyroHandshake = {"user": "anna"}, "stranger"
    async with anna, stranger:
        await anna.add(1, 2)
        try:
            await stranger.add(1, 2)
        except errors.CommunicationError as error:
            return [anna._pyroAnswered, "who are you?" in str(error)]
    return "no error"


@scenario
async def oneway_context(proxy: Proxy, service: Service, settings: Settings) -> Any:
    await proxy.note_context.options(annotations={"USER": b"hello"}, correlation_id=uuid.UUID(int=7))()
    return await proxy.wait_for_note(5)


@scenario
async def annotations_stay_with_their_call(proxy: Proxy, service: Service, settings: Settings) -> Any:
    found = []
    for member in (proxy.exchange, proxy.nothing):
        call = member()
        await call
        found.append([key for key in call.response_annotations if key == "RESP"])
    return found


class Point:
    """A class that travels by converters."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


register_class_to_dict(Point, lambda point: {"__class__": "example.Point", "xy": [point.x, point.y]})
register_dict_to_class("example.Point", lambda name, data: Point(*data["xy"]))


@scenario
async def converters(proxy: Proxy, service: Service, settings: Settings) -> Any:
    point = await proxy.double(Point(1, 2))
    return [type(point).__name__, point.x, point.y]


class Listener:
    """Is called back."""

    @expose
    async def add(self, a: int, b: int) -> int:
        return a + b

    @expose
    @callback
    async def refuse(self, text: str) -> None:
        raise ValueError(text)


@scenario
async def callback_(proxy: Proxy, service: Service, settings: Settings) -> Any:
    """Our daemon beside the proxy is called by the service."""
    listener = Listener()
    async with Daemon() as daemon:
        daemon.register(listener)
        async with Proxy(service.uri, settings=settings) as own:
            return await own.call_back(Proxy(daemon.uri_for(listener)))


@scenario
async def stream_linger(proxy: Proxy, service: Service, settings: Settings) -> Any:
    """An item that is asked for over another connection, when the first is gone."""
    items = await proxy.count(5)
    first = await anext(items)
    proxy._pyroRelease()
    async with Proxy(f"PYRO:Pyro.Daemon@{service.uri.split('@')[1]}", settings=settings) as daemon:
        return [first, await daemon.get_next_stream_item(items._id)]


@scenario
async def autoproxy(proxy: Proxy, service: Service, settings: Settings) -> Any:
    child = await proxy.child()
    async with child:
        try:
            await child.hidden()
        except AttributeError:
            return [type(child).__name__, await child.name()]
    return "no error"


@scenario
async def unknown_object(proxy: Proxy, service: Service, settings: Settings) -> Any:
    async with Proxy(service.uri.replace("shared@", "nobody@"), settings=settings) as nobody:
        try:
            await nobody.add(1, 2)
        except errors.CommunicationError as error:
            return "unknown object" in str(error)
    return "no error"


@scenario
async def reconnect(proxy: Proxy, service: Service, settings: Settings) -> Any:
    first = await proxy.add(1, 1)
    proxy._pyroRelease()
    return [first, await proxy.add(2, 2)]


@scenario
async def daemon_object(proxy: Proxy, service: Service, settings: Settings) -> Any:
    place = service.uri.split("@")[1]
    async with Proxy(f"PYRO:Pyro.Daemon@{place}", settings=settings) as daemon:
        await daemon.ping()
        objects = set(await daemon.registered()) & {"shared", "counter", "Pyro.Daemon"}
        return [sorted(objects), "Pyro.Daemon bound on" in await daemon.info()]
