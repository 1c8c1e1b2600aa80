"""Our gateway beside Pyro5's own: the same requests to both, before the same stock objects."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import matrix
import pytest
from peers import ANSWER_WITHIN_S, PROGRAMS, started, stock_python

pytestmark = pytest.mark.interop

THINGS = "/pyro/http.things/"
OUR_GATEWAY = (sys.executable, "-c", "from pyroxfer_core.cli.gateway import gateway; gateway()")
OUR_NS = (sys.executable, "-c", "from pyroxfer_core.cli.ns import ns; ns()")
STOCK_NS = ("-m", "Pyro5.nameserver", "-n", "127.0.0.1", "-p", "0", "-x")
STOCK_GATEWAY = ("-u", "-c", """
import sys
import threading
from Pyro5.utils import httpgateway
httpgateway.main(sys.argv[1:])
""")  # fmt: skip
KEY = "secret"


@dataclass(frozen=True)
class Reply:
    """What a gateway answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class KeepRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class Gateway:
    """One that runs."""

    url: str

    def __call__(self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.url + path, method=method, data=body, headers=sent)
        try:
            with build_opener(KeepRedirect).open(request, timeout=ANSWER_WITHIN_S) as answer:
                return self._reply(answer.status, answer.headers, answer.read())
        except HTTPError as error:
            return self._reply(error.code, error.headers, error.read())

    @staticmethod
    def _reply(status: int, headers: Any, body: bytes) -> Reply:
        return Reply(status, {name.lower(): value for name, value in headers.items()}, body)


@pytest.fixture(scope="module")
def gateways() -> Iterator[dict[str, Gateway]]:
    """Ours and Pyro5's, plain and with a key, before one stock daemon and a name server of ours."""
    with ExitStack() as stack:
        port = started(stack, r"NS running on \S+:(\d+) ", *OUR_NS, "-p", "0", "-s", "memory", "-x")
        started(stack, r"(PYRO)", stock_python(), str(PROGRAMS / "http_objects.py"), port)
        place = {"PYRO_NS_HOST": "127.0.0.1", "PYRO_NS_PORT": port, "PYRO_NS_AUTOCLEAN": "0"}
        found = {}
        for name, options in {"": (), "key": ("-g", KEY)}.items():
            ours = (*OUR_GATEWAY, "-p", "0", "--ns", f"127.0.0.1:{port}", *options)
            found["ours" + name] = Gateway(started(stack, r"running on (http://\S+?)/?$", *ours))
            stock = (stock_python(), *STOCK_GATEWAY, "-H", "127.0.0.1", "-p", "0", *options)
            found["stock" + name] = Gateway(started(stack, r"running on (http://[^/]+)", *stock, **place))
        yield found


@matrix.cell("HTTP gateway: ours against the stock one", "answers", "pyro5")
@pytest.mark.parametrize(
    "path",
    [
        THINGS + "echo?message=hello",
        THINGS + "echo?message=a&message=b",
        THINGS + "echo?message=%C3%BC%20x%2Fy",
        THINGS + "nothing",
        THINGS + "types",
        THINGS + "uri",
        THINGS + "colour",
        THINGS + "noted",
        "/pyro/http.a/b/nothing",
        "/pyro/http.a%2Fb/nothing",
    ],
)
def test_answers_are_the_same(gateways: dict[str, Gateway], path: str) -> None:
    """Status, type and every byte of the body."""
    ours, stock = gateways["ours"](path), gateways["stock"](path)
    assert (ours.status, ours.headers["content-type"]) == (stock.status, stock.headers["content-type"])
    assert ours.body == stock.body


@matrix.cell("HTTP gateway: ours against the stock one", "metadata", "pyro5")
def test_metadata_is_the_same(gateways: dict[str, Gateway]) -> None:
    """Ours is sorted."""
    ours, stock = gateways["ours"](THINGS + "$meta").json, gateways["stock"](THINGS + "$meta").json
    assert ours == {key: sorted(names) for key, names in stock.items()}


@matrix.cell("HTTP gateway: ours against the stock one", "exceptions", "pyro5")
@pytest.mark.parametrize("path", [THINGS + "fail?text=oh", THINGS + "zero", THINGS + "echo", THINGS + "echo?wrong=1"])
def test_exceptions_are_the_same(gateways: dict[str, Gateway], path: str) -> None:
    """500 with Pyro's own form, traceback included; ours adds the text and two headers."""
    ours, stock = gateways["ours"](path), gateways["stock"](path)
    assert (ours.status, ours.type) == (stock.status, stock.type) == (500, "application/json")
    expected = stock.json
    found = ours.json
    assert isinstance(found.pop("text"), str)
    assert found == expected
    assert {"x-pyro-outcome", "x-pyro-correlation-id"} <= ours.headers.keys()


@matrix.cell("HTTP gateway: ours against the stock one", "refusals", "pyro5")
@pytest.mark.parametrize(
    "path",
    ["/pyro", "/pyro/http.things", "/other", "/pyro/private.things/echo?message=1", "/pyro/Pyro.NameServer/list"],
)
def test_refusals_are_the_same(gateways: dict[str, Gateway], path: str) -> None:
    """404 and 403 with the same text."""
    ours, stock = gateways["ours"](path), gateways["stock"](path)
    assert (ours.status, ours.type, ours.body) == (stock.status, stock.type, stock.body)


@matrix.cell("HTTP gateway: ours against the stock one", "the gateway's key", "pyro5")
@pytest.mark.parametrize("path", [THINGS + "nothing", THINGS + "nothing?$key=no", "/pyro/private.things/echo"])
def test_the_key_is_the_same(gateways: dict[str, Gateway], path: str) -> None:
    """403 without it or with a wrong one; by header or in the query; the header counts first."""
    ours, stock = gateways["ourskey"], gateways["stockkey"]
    refused = ours(path), stock(path)
    assert refused[0].status == refused[1].status == 403
    assert refused[0].body == refused[1].body
    for gateway in (ours, stock):
        assert gateway(THINGS + f"echo?message=1&$key={KEY}").json == "1"
        assert gateway(THINGS + "nothing", X_Pyro_Gateway_Key=KEY).status == 200
        assert gateway(THINGS + f"nothing?$key={KEY}", X_Pyro_Gateway_Key="no").status == 403


@matrix.cell("HTTP gateway: ours against the stock one", "correlation id", "pyro5")
def test_the_correlation_id_is_the_same(gateways: dict[str, Gateway]) -> None:
    """It reaches the object and comes back; without one both make one."""
    mine = str(uuid.uuid4())
    for gateway in (gateways["ours"], gateways["stock"]):
        answer = gateway(THINGS + "correlation", X_Pyro_Correlation_Id=mine)
        assert answer.json == answer.headers["x-pyro-correlation-id"] == mine
        assert uuid.UUID(gateway(THINGS + "correlation").json)


@matrix.cell("HTTP gateway: ours against the stock one", "one-way calls", "pyro5")
def test_one_way_calls_are_the_same(gateways: dict[str, Gateway]) -> None:
    """200, JSON as type, and nothing in it; by the method or by the option."""
    requests: list[tuple[str, dict[str, Any]]] = [
        (THINGS + "note?text=x", {}),
        (THINGS + "zero", {"X_Pyro_Options": "oneway"}),
    ]
    for path, headers in requests:
        ours, stock = gateways["ours"](path, **headers), gateways["stock"](path, **headers)
        assert (ours.status, ours.type, ours.body) == (stock.status, stock.type, stock.body) == (200, ours.type, b"")


@matrix.cell("HTTP gateway: ours against the stock one", "other HTTP methods", "pyro5")
def test_other_methods_are_the_same(gateways: dict[str, Gateway]) -> None:
    """405 in the same words, and OPTIONS is answered."""
    for method in ("PUT", "DELETE"):
        ours, stock = (gateways[name](THINGS + "nothing", method=method) for name in ("ours", "stock"))
        assert (ours.status, ours.body) == (stock.status, stock.body) == (405, b"Error 405: Method Not Allowed")
    ours, stock = (gateways[name](THINGS + "nothing", method="OPTIONS") for name in ("ours", "stock"))
    assert (ours.status, ours.body) == (stock.status, stock.body)


DIFFERENCES: list[tuple[str, dict[str, Any], int, int]] = [
    # request, options, stock's status, ours
    ("/pyro/http.none/echo", {}, 500, 404),
    (THINGS + "unknown", {}, 500, 404),
    (THINGS + "__class__", {}, 500, 404),
    (THINGS + "colour?x=1", {}, 500, 400),
    (THINGS + "nothing", {"X_Pyro_Correlation_Id": "rubbish"}, 500, 400),
    (THINGS + "raw", {}, 500, 200),
    (THINGS + "count?to=2", {}, 500, 200),
    (THINGS + "echo?message=", {}, 500, 200),
    (THINGS + "echo", {"method": "POST", "body": b"message=x"}, 500, 200),
    ("/", {}, 302, 200),
    ("/pyro/", {}, 200, 302),
    (THINGS + "nothing", {"Origin": "https://evil.example"}, 200, 403),
]
"""Every one stands in docs/gateway.md."""


@pytest.mark.parametrize(("path", "options", "theirs", "expected"), DIFFERENCES)
def test_differences_are_the_known_ones(
    gateways: dict[str, Gateway], path: str, options: dict[str, Any], theirs: int, expected: int
) -> None:
    """What differs is what the documentation says, on both sides."""
    assert gateways["stock"](path, **options).status == theirs
    assert gateways["ours"](path, **options).status == expected


def test_streams_bytes_forms_and_cors(gateways: dict[str, Gateway]) -> None:
    """What ours gives where Pyro's fails, and what it does not give away."""
    ours = gateways["ours"]
    assert ours(THINGS + "count?to=2").body == b"0\n1\n"
    assert ours(THINGS + "raw").json == {"data": "AP8=", "encoding": "base64"}
    assert ours(THINGS + "echo", method="POST", body=b"message=x").json == "x"
    assert "access-control-allow-origin" not in ours(THINGS + "nothing").headers
    assert gateways["stock"](THINGS + "nothing").headers["access-control-allow-origin"] == "*"


@matrix.cell("HTTP gateway: ours against the stock one", "with a stock name server", "pyro5")
def test_a_stock_name_server_is_enough() -> None:
    """Ours before a name server and objects that are all Pyro5's: calls, the names for the page, the document."""
    with ExitStack() as stack:
        port = started(stack, r"NS running on \S+?:(\d+) ", stock_python(), "-u", *STOCK_NS)
        started(stack, r"(PYRO)", stock_python(), str(PROGRAMS / "http_objects.py"), port)
        command = (*OUR_GATEWAY, "-p", "0", "--ns", f"127.0.0.1:{port}", "-e", "")
        gateway = Gateway(started(stack, r"running on (http://\S+?)/?$", *command))
        assert gateway(THINGS + "echo?message=x").json == "x"
        listed = gateway("/api/names").json
        assert {entry["name"] for entry in listed["entries"]} >= {"http.things", "private.things", "Pyro.NameServer"}
        assert (listed["leases"], listed["total"]) == (False, len(listed["entries"]))
        about = gateway("/api/objects/http.things").json
        assert (about["complete"], about["attributes"][0]["name"]) == (False, "colour")
        assert "/pyro/http.things/echo" in gateway("/openapi.json").json["paths"]
