"""This machine: its name, its addresses."""

from __future__ import annotations

import socket
from typing import Final

import trio

from ...nameserver.addresses import is_loopback
from .findings import Report

OUTSIDE: Final = {"IPv4": (socket.AF_INET, "192.0.2.1"), "IPv6": (socket.AF_INET6, "2001:db8::1")}
"""Addresses for documentation: they tell which way packets to other networks leave, and nothing is sent there."""


async def look_at_machine(report: Report) -> None:
    """The own host name in the DNS, and the address that others see, for IPv4 and IPv6."""
    addresses = {kind: _outgoing(*where) for kind, where in OUTSIDE.items()}
    await _look_at_own_name(report, [found for found in addresses.values() if found])
    for kind, address in addresses.items():
        if address is not None:
            report.ok("visible address", f"packets to other networks leave with the {kind} address {address}")
    if not any(addresses.values()):
        report.warn(
            "visible address",
            "there is no route to any other network",
            "connect this machine, or use localhost for programs that all run here",
        )


async def _look_at_own_name(report: Report, visible: list[str]) -> None:
    name = socket.gethostname()
    place = visible[0] if visible else "the address others reach"
    try:
        found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        report.warn(
            "own host name",
            f"{name} is not found in the DNS ({error.strerror or error})",
            f"add it to /etc/hosts, or start daemons with host={place!r}",
        )
        return
    addresses = sorted({str(entry[4][0]) for entry in found})
    if all(is_loopback(address) for address in addresses):
        report.warn(
            "own host name",
            f"{name} means {', '.join(addresses)} here: a daemon that listens on it cannot be reached from elsewhere",
            f"start daemons with host={place!r}, or correct the line of {name} in /etc/hosts",
        )
    else:
        report.ok("own host name", f"{name} is {', '.join(addresses)}")


def _outgoing(family: socket.AddressFamily, target: str) -> str | None:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
