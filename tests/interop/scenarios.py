"""What every client must see from every service, whoever they are: one table for all directions."""

from __future__ import annotations

from typing import Any

EXPECTED: dict[str, Any] = {
    "echo": [],
    "calls": [3, 6, 3, None, 300_000],
    "attributes": [1, 42, "cannot be set"],
    "attribute_errors": ["AttributeError", "AttributeError", "AttributeError"],
    "metadata": [["add", "count", "echo", "note"], ["note"], ["fixed", "level"]],
    "oneway": [None, "heard"],
    "exceptions": [["ZeroDivisionError", "division by zero", True], ["ValueError", "no", True]],
    "unheard_exception": [True, 2],
    "stream": [0, 1, 2, 3, 4],
    "stream_error": [[0, 1], "stream broke"],
    "stream_early_close": [0, 1],
    "batch": [3, "x", "ZeroDivisionError"],
    "batch_oneway": [None, "from a batch"],
    "annotations": [{"USER": "hello", "UTWO": "again"}, "from the service"],
    "correlation": True,
    "blob": ["label", [1, "two"]],
    "session": [1, 2, 1],
    "autoproxy": ["Proxy", "child"],
    "unknown_object": True,
    "reconnect": [2, 4],
    "daemon_object": [["Pyro.Daemon", "counter", "shared"], True],
}

SERIALIZERS = ("serpent", "json", "marshal", "msgpack")
STOCK = ("pyro4", "pyro5")
PROTOCOL = {"pyro4": 48, "pyro5": 502}

STOCK_CLIENT_CANNOT = {
    **{
        (name, "marshal"): "'NoneType' object has no attribute 'items'"
        for name in ("attributes", "batch", "batch_oneway")
    },
}
"""(scenario, serializer): what a stock client fails with before it sends anything."""

STOCK_SERVICE_CANNOT = {
    ("batch", "marshal"): "unmarshallable object",
    ("autoproxy", "marshal"): "'dict' object|__main__.Child",
}
"""(scenario, serializer): a stock service sends an object as a plain dict, or no exception in a batch."""

STOCK_BLOB_OVER_JSON = ["label", "params"]
"""Both libraries unpack a JSON call by its keys, so a receiver of theirs reads this instead of the data."""
