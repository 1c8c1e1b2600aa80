"""The scenarios of the table, played with our trio proxy."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from peers import Service

from pyroxfer_core import BatchProxy, Proxy, SerializedBlob, Settings, errors

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
