"""What every client must see from every service, whoever they are: one table for all directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matrix import Unable

EXPECTED: dict[str, Any] = {
    "echo": [],
    "calls": [3, 6, 3, None, 300_000],
    "attributes": [1, 42, "cannot be set"],
    "attribute_errors": ["AttributeError", "AttributeError", "AttributeError"],
    "metadata": [["add", "count", "echo", "note"], ["note", "note_context"], ["fixed", "level"]],
    "oneway": [None, "heard"],
    "exceptions": [["ZeroDivisionError", "division by zero", True], ["ValueError", "no", True]],
    "unheard_exception": [True, 2],
    "exception_shapes": [
        ["ValueError", ["boom", 42], None],
        ["ValueError", ["odd"], {"k": "v"}],
        ["KeyError", ["key"], None],
        ["NamingError", ["no such name"], None],
    ],
    "stream": [0, 1, 2, 3, 4],
    "stream_error": [[0, 1], "stream broke"],
    "stream_early_close": [0, 1],
    "batch": [3, "x", "ZeroDivisionError"],
    "batch_oneway": [None, "from a batch"],
    "annotations": [{"USER": "hello", "UTWO": "again"}, "from the service"],
    "correlation": True,
    "blob": ["label", [1, "two"]],
    "blob_value": [["label", {"k": [1, "two"]}], ["label", 7]],
    "session": [1, 2, 1],
    "instance_single": [1, 2, 3],
    "instance_percall": [11, 11, 11],
    "resource_tracking": True,
    "handshake": ["welcome anna", True],
    "oneway_context": "00000000-0000-0000-0000-000000000007 hello",
    "annotations_stay_with_their_call": [["RESP"], []],
    "converters": ["Point", 2, 4],
    "callback": [5, "ValueError", "no"],
    "stream_linger": [0, 1],
    "autoproxy": ["Proxy", "child"],
    "unknown_object": True,
    "reconnect": [2, 4],
    "daemon_object": [["Pyro.Daemon", "counter", "shared"], True],
}

SERIALIZERS = ("serpent", "json", "marshal", "msgpack")
SERVERS = ("thread", "multiplex")
"""The two kinds of server both libraries have."""
STOCK = ("pyro4", "pyro5")
PROTOCOL = {"pyro4": 48, "pyro5": 502}

_NO_MARSHAL = Unable(
    "'NoneType' object has no attribute 'items'",
    "stock clients cannot write an attribute access or a batch with marshal: they fail before anything is sent",
)

STOCK_CLIENT_CANNOT = {
    **{(name, "marshal"): _NO_MARSHAL for name in ("attributes", "batch", "batch_oneway")},
    ("callback", "marshal"): Unable(
        "'dict' object|__main__.Listener", "stock clients write the object itself with marshal, not a proxy"
    ),
    ("blob_value", "marshal"): Unable(
        "not iterable", "stock clients take the data of a blob apart when they write marshal, and need a list"
    ),
}
"""(scenario, serializer): what a stock client fails with before it sends anything."""

STOCK_SERVICE_CANNOT = {
    ("batch", "marshal"): Unable(
        "unmarshallable object", "stock daemons cannot put an exception into the results of a batch with marshal"
    ),
    ("autoproxy", "marshal"): Unable(
        "'dict' object|__main__.Child", "stock daemons write the object itself with marshal, not a proxy"
    ),
}
"""(scenario, serializer): a stock service sends an object as a plain dict, or no exception in a batch."""


def client_cannot(parameters: Mapping[str, Any]) -> Unable | None:
    return STOCK_CLIENT_CANNOT.get((parameters["scenario"], parameters["serializer"]))


def service_cannot(parameters: Mapping[str, Any]) -> Unable | None:
    return STOCK_SERVICE_CANNOT.get((parameters["scenario"], parameters["serializer"]))


def either_cannot(parameters: Mapping[str, Any]) -> Unable | None:
    return client_cannot(parameters) or service_cannot(parameters)


STOCK_OVER_JSON = {
    "blob": ["label", "params"],
    "blob_value": [["label", "params"]] * 2,
}
"""Both libraries unpack a JSON call by its keys, so a receiver of theirs reads this instead of the data."""


def expected_of_stock(scenario: str, serializer: str) -> Any:
    """What a stock daemon makes of a scenario."""
    return STOCK_OVER_JSON.get(scenario, EXPECTED[scenario]) if serializer == "json" else EXPECTED[scenario]
