"""Requests through the HTTP gateway: ours against Pyro5's own."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

import report
from measure import Comparison, Contestant, Effort, Sample, in_turns
from processes import OURS, Server, command, program, run_client, stock

UNIT = "requests/s"
CALLERS = (1, 4)
TITLE = "HTTP gateway"
NOTE = """\
`GET /pyro/http.adder/add?a=1&b=2`. Callers keep their connection as long as the gateway lets them: Pyro5's is
HTTP/1.0 and ends it after each request. "Same object" means the stock name server and the stock object that Pyro5's
gateway has. Not more than four callers, because Pyro5's gateway lets five wait and drops others for a second."""
STOCK_NS = ("-u", "-m", "Pyro5.nameserver", "-n", "127.0.0.1", "-p", "0", "-x")
STOCK_GATEWAY = """
import sys
from Pyro5 import config
config.NS_HOST, config.NS_PORT = "127.0.0.1", int(sys.argv[1])
from Pyro5.utils import httpgateway
httpgateway.main(["-H", "127.0.0.1", "-p", "0"])
"""
NS_PORT = r"NS running on \S+?:(\d+) "
URL = r"(http://127.0.0.1:\d+)"
WAYS = {"Pyro5's gateway": (False, False), "our gateway, same object": (False, True), "all ours": (True, True)}
"""Name to whether the object and its name server, and the gateway, are ours."""


def measure(effort: Effort) -> dict[str, Any]:
    """One table."""
    print("gateway", file=sys.stderr)
    seconds = effort.seconds
    contestants = [
        Contestant(f"{name}, {callers} caller{'s' * (callers > 1)}", partial(rate, *ours, seconds, callers))
        for callers in CALLERS
        for name, ours in WAYS.items()
    ]
    return {"Requests": report.section(UNIT, in_turns(contestants, effort.repetitions), comparisons())}


def rate(our_object: bool, our_gateway: bool, seconds: float, callers: int) -> Sample:
    with ExitStack() as running:
        ns = command("pyroxfer", "ns", "-p", 0, "-s", "memory", "-x") if our_object else [stock(), *STOCK_NS]
        port = running.enter_context(Server(ns, pattern=NS_PORT)).found[1]
        thing = (
            program(OURS, "http_object.py", port) if our_object else program(stock(), "pyro5_http_object.py", port)
        )
        running.enter_context(Server(thing))
        if our_gateway:
            wanted = command("pyroxfer", "gateway", "-H", "127.0.0.1", "-p", 0, "--ns", f"127.0.0.1:{port}")
        else:
            wanted = [stock(), "-u", "-c", STOCK_GATEWAY, port]
        gateway = running.enter_context(Server(wanted, pattern=URL, quiet=True))
        url = f"{gateway.found[1]}/pyro/http.adder/add?a=1&b=2"
        before = gateway.cpu_s()
        result = run_client(program(OURS, "http_client.py", url, seconds, callers))
        used = gateway.cpu_s() - before
        columns = {
            "gateway CPU µs a request": used / result["calls"] * 1e6,
            "connections of the callers": result["connections"],
            "peak MiB of the gateway": gateway.peak_rss_mib(),
        }
        return Sample(result["calls"] / result["seconds"], columns)


def comparisons() -> list[Comparison]:
    def of(callers: int) -> str:
        return f"{callers} caller{'s' * (callers > 1)}"

    return [
        Comparison(f"{name}, {of(callers)}", f"{name}, {of(callers)}", [f"Pyro5's gateway, {of(callers)}"], 3.0)
        for callers in CALLERS
        for name in list(WAYS)[1:]
    ]
