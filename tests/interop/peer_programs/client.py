"""A plain Pyro program: calls a service as the test asks. Usage: client.py pyro4|pyro5|pyroxfer [CONFIG as JSON]

`pyroxfer` runs the very same program on our blocking facade: one import changed.

Reads one JSON line for each scenario: {"scenario", "uris", "serializer", "compression", "key"}; answers with one JSON
line: {"result": ...} or {"failed": "Class: text"}. Values are answered as their repr, so tuples stay tuples.
"""

import importlib
import json
import sys
import threading
import time
import uuid

library = sys.argv[1]
modules = {
    "pyro4": ("Pyro4", "Pyro4.errors"),
    "pyro5": ("Pyro5.api", "Pyro5.errors"),
    "pyroxfer": ("pyroxfer_core.blocking", "pyroxfer_core.errors"),
}
pyro, errors = map(importlib.import_module, modules[library])
SerializedBlob = pyro.core.SerializedBlob if library == "pyro4" else pyro.SerializedBlob
BatchProxy = pyro.batch if library == "pyro4" else pyro.BatchProxy
for item, value in json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}").items():
    setattr(pyro.config, item, value)

converters = pyro.util.SerializerBase if library == "pyro4" else pyro


class Point:
    """A class that travels by converters."""

    def __init__(self, x, y):
        self.x, self.y = x, y


converters.register_class_to_dict(Point, lambda point: {"__class__": "example.Point", "xy": [point.x, point.y]})
converters.register_dict_to_class("example.Point", lambda name, data: Point(*data["xy"]))


class Listener:
    """Is called back."""

    @pyro.expose
    def add(self, a, b):
        return a + b

    @pyro.expose
    @pyro.callback
    def refuse(self, text):
        raise ValueError(text)


VALUES = {
    "serpent": [None, True, 7, -(2**70), 2.5, "täxt", (1, "two"), {"k": [1, 2]}, {1, 2}, 1 + 2j],
    "json": [None, True, 7, -(2**70), 2.5, "täxt", [1, "two"], {"k": [1, 2]}],
    "marshal": [None, True, 7, -(2**70), 2.5, "täxt", (1, "two"), {"k": [1, 2]}, {1, 2}, 1 + 2j, b"\0\xff"],
    "msgpack": [None, True, 7, -(2**70), 2.5, "täxt", [1, "two"], {"k": [1, 2]}, b"\0\xff", 1 + 2j],
}


def echo(proxy, asked):
    """The values that came back as something else: none should."""
    pairs = [(value, proxy.echo(value)) for value in VALUES[asked["serializer"]]]
    return [f"{sent!r} -> {got!r}" for sent, got in pairs if type(sent) is not type(got) or sent != got]


def calls(proxy, asked):
    return [proxy.add(1, 2), proxy.add(1, b=5), proxy.add(a=3), proxy.nothing(), len(proxy.text(300_000))]


def attributes(proxy, asked):
    before = proxy.level
    proxy.level = before + 41
    after, proxy.level = proxy.level, before
    return [before, after, proxy.fixed]


def attribute_errors(proxy, asked):
    found = []
    for attempt in (lambda: setattr(proxy, "fixed", 1), lambda: proxy.unknown, lambda: proxy._hidden()):
        try:
            attempt()
            found.append("no error")
        except AttributeError:
            found.append("AttributeError")
    return found


def metadata(proxy, asked):
    proxy._pyroBind()
    methods = {"add", "count", "note", "echo"} & set(proxy._pyroMethods)
    return [sorted(methods), sorted(proxy._pyroOneway), sorted(proxy._pyroAttrs)]


def oneway(proxy, asked):
    return [proxy.note("heard"), proxy.wait_for_note(5)]


def exceptions(proxy, asked):
    found = []
    for attempt in (lambda: proxy.divide(1, 0), lambda: proxy.refuse("no")):
        try:
            attempt()
        except Exception as error:
            trace = "".join(getattr(error, "_pyroTraceback", []))
            found.append([type(error).__name__, str(error), type(error).__name__ in trace])
    return found


def unheard_exception(proxy, asked):
    try:
        proxy.raise_unheard()
    except Exception as error:
        return ["Unheard" in str(error), proxy.add(1, 1)]


def exception_shapes(proxy, asked):
    found = []
    for how in ("args", "attributes", "key", "pyro"):
        try:
            proxy.fail(how)
        except Exception as error:
            found.append([type(error).__name__, list(error.args), getattr(error, "detail", None)])
    return found


def stream(proxy, asked):
    return list(proxy.count(5))


def stream_error(proxy, asked):
    items = []
    try:
        for item in proxy.break_after(2):
            items.append(item)
    except ValueError as error:
        return [items, str(error)]


def stream_early_close(proxy, asked):
    before = proxy.streams_closed()
    items = proxy.endless()
    first = [next(items), next(items)]
    items.close()
    while proxy.streams_closed() == before:
        pass
    return first


def batch(proxy, asked):
    batched = BatchProxy(proxy)
    batched.add(1, 2)
    batched.echo("x")
    batched.divide(1, 0)
    batched.add(5, 5)
    results, found = batched(), []
    try:
        for result in results:
            found.append(result)
    except ZeroDivisionError:
        found.append("ZeroDivisionError")
    return found


def batch_oneway(proxy, asked):
    batched = BatchProxy(proxy)
    batched.note("from a batch")
    return [batched(oneway=True), proxy.wait_for_note(5)]


def annotations(proxy, asked):
    pyro.current_context.annotations = {"USER": b"hello", "UTWO": b"again"}
    try:
        received = proxy.exchange()
        answer = pyro.current_context.response_annotations
        return [received, bytes(answer["RESP"]).decode()]
    finally:
        pyro.current_context.annotations = {}
        pyro.current_context.response_annotations = {}


def correlation(proxy, asked):
    pyro.current_context.correlation_id = mine = uuid.uuid4()
    try:
        return proxy.correlation() == str(mine)
    finally:
        pyro.current_context.correlation_id = None


def blob(proxy, asked):
    try:
        return proxy.receive(SerializedBlob("label", [1, "two"]))
    finally:
        pyro.current_context.annotations = {}


def blob_value(proxy, asked):
    """Blobs whose data are not a list of arguments."""
    try:
        return [proxy.receive(SerializedBlob("label", data)) for data in ({"k": [1, "two"]}, 7)]
    finally:
        pyro.current_context.annotations = {}


def session(proxy, asked):
    counter = asked["uris"]["counter"]
    with open_proxy(counter, asked) as first, open_proxy(counter, asked) as second:
        return [first.increment(), first.increment(), second.increment()]


def instance_single(proxy, asked):
    with open_proxy(asked["uris"]["single"], asked) as first, open_proxy(asked["uris"]["single"], asked) as second:
        first.reset()
        return [first.increment(), second.increment(), first.increment()]


def instance_percall(proxy, asked):
    with open_proxy(asked["uris"]["percall"], asked) as first, open_proxy(asked["uris"]["percall"], asked) as second:
        return [first.increment(), first.increment(), second.increment()]


def resource_tracking(proxy, asked):
    before = proxy.resources_closed()
    with open_proxy(asked["uris"]["shared"], asked) as other:
        other.track()
    while proxy.resources_closed() == before:  # a remote question each time
        pass
    return True


class Visitor(pyro.Proxy):
    """Remembers what the daemon answered when it connected."""

    def _pyroValidateHandshake(self, response):
        answered.append(response)


answered = []


def handshake(proxy, asked):
    answered.clear()
    with Visitor(asked["uris"]["shared"]) as anna, Visitor(asked["uris"]["shared"]) as stranger:
        anna._pyroHandshake, stranger._pyroHandshake = {"user": "anna"}, "stranger"
        anna.add(1, 2)
        try:
            stranger.add(1, 2)
        except errors.CommunicationError as error:
            return [*answered, "who are you?" in str(error)]


def oneway_context(proxy, asked):
    pyro.current_context.annotations = {"USER": b"hello"}
    pyro.current_context.correlation_id = uuid.UUID(int=7)
    try:
        proxy.note_context()
    finally:
        pyro.current_context.annotations = {}
        pyro.current_context.correlation_id = None
    return proxy.wait_for_note(5)


def annotations_stay_with_their_call(proxy, asked):
    found = []
    for call in (proxy.exchange, proxy.nothing):
        call()
        found.append([key for key in pyro.current_context.response_annotations if key == "RESP"])
    return found


def converters_(proxy, asked):
    point = proxy.double(Point(1, 2))
    return [type(point).__name__, point.x, point.y]


def callback(proxy, asked):
    with pyro.Daemon() as daemon:
        listener = Listener()
        daemon.register(listener)
        thread = threading.Thread(target=daemon.requestLoop, daemon=True)
        thread.start()
        try:
            return proxy.call_back(listener)
        finally:
            daemon.shutdown()
            thread.join()


def stream_linger(proxy, asked):
    """An item that is asked for over another connection, when the first is gone."""
    items = proxy.count(5)
    first, stream_id = next(items), items._id if library == "pyroxfer" else items.streamId
    proxy._pyroRelease()
    with open_proxy("PYRO:Pyro.Daemon@" + asked["uris"]["shared"].split("@")[1], asked) as daemon:
        return [first, daemon.get_next_stream_item(stream_id)]


def over_the_daemon(asked, stream_id):
    """An item, or why there is none, over a connection of its own."""
    with open_proxy("PYRO:Pyro.Daemon@" + asked["uris"]["shared"].split("@")[1], asked) as daemon:
        try:
            return daemon.get_next_stream_item(stream_id)
        except errors.PyroError as error:
            return str(error)


def begun(proxy):
    """A stream without end from which an item was read, and its id."""
    items = proxy.endless()
    next(items)
    return items, items._id if library == "pyroxfer" else items.streamId


def stream_no_linger(proxy, asked):
    """The daemon drops a stream with its connection, as soon as it has noticed."""
    _, stream_id = begun(proxy)
    proxy._pyroRelease()
    while isinstance(found := over_the_daemon(asked, stream_id), int):
        pass
    return found


def stream_linger_is_over(proxy, asked):
    """Daemons look every two seconds; each question lets the stream linger anew."""
    _, stream_id = begun(proxy)
    proxy._pyroRelease()
    for pause in (2.5, 5, 10):
        time.sleep(pause)
        if not isinstance(found := over_the_daemon(asked, stream_id), int):
            return found
    return "never over"


def stream_lifetime_is_over(proxy, asked):
    """Also while it is read."""
    items, _ = begun(proxy)
    try:
        for _ in items:
            pass
    except errors.PyroError as error:
        return str(error)


def array(proxy, asked):
    """Nobody here knows what an array is."""
    try:
        proxy.array()
    except errors.PyroError as error:
        return [".tolist()" in str(error), proxy.add(1, 2)]


def autoproxy(proxy, asked):
    child = proxy.child()
    try:
        child.hidden()
    except AttributeError:
        return [type(child).__name__, child.name()]


def unknown_object(proxy, asked):
    with open_proxy(asked["uris"]["shared"].replace("shared@", "nobody@"), asked) as nobody:
        try:
            nobody.add(1, 2)
        except errors.CommunicationError as error:
            return "unknown object" in str(error)


def reconnect(proxy, asked):
    first = proxy.add(1, 1)
    proxy._pyroRelease()
    return [first, proxy.add(2, 2)]


def daemon_object(proxy, asked):
    place = asked["uris"]["shared"].split("@")[1]
    with open_proxy("PYRO:Pyro.Daemon@" + place, asked) as daemon:
        daemon.ping()
        return [
            sorted(set(daemon.registered()) & {"shared", "counter", "Pyro.Daemon"}),
            "Pyro.Daemon bound on" in daemon.info(),
        ]


def open_proxy(uri, asked):
    proxy = pyro.Proxy(uri)
    if asked.get("handshake"):
        proxy._pyroHandshake = asked["handshake"]
    if asked.get("key"):
        proxy._pyroHmacKey = asked["key"].encode()
    return proxy


def scenario_named(name):
    return converters_ if name == "converters" else globals()[name]


def answer(asked):
    pyro.config.SERIALIZER = asked["serializer"]
    pyro.config.COMPRESSION = asked.get("compression", False)
    with open_proxy(asked["uris"]["shared"], asked) as proxy:
        return scenario_named(asked["scenario"])(proxy, asked)


for line in sys.stdin:
    try:
        print(json.dumps({"result": answer(json.loads(line))}), flush=True)
    except Exception as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}"}), flush=True)
