"""What host texts of URIs and peers mean on this machine."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

_OLD_FORM: Final = re.compile(r"(0[xX])?[0-9a-fA-F]+(\.(0[xX])?[0-9a-fA-F]+){0,3}", re.ASCII)


def is_wildcard(host: str) -> bool:
    """Whether a daemon bound to this host listens on all addresses, so that it names none of them."""
    address = _address(host)
    return host == "" or (address is not None and address.is_unspecified)


def is_loopback(host: str) -> bool:
    """Whether this host is reached only from its own machine. Host names other than localhost are not looked up."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_this_machine(host: str) -> bool:
    """Whether a numeric address belongs to this machine: only such an address can be bound."""
    if is_loopback(host):
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return not is_wildcard(host)


def local_address_towards(peer: str) -> str | None:
    """The address of this machine from which packets to ``peer`` leave; None without a route. Sends nothing."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))
        except OSError:
            return None
        host: str = probe.getsockname()[0]
    return None if is_wildcard(host) else host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The numeric address that the text is, or None; IPv4 inside IPv6 is taken out."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _old_form(host)
    return getattr(address, "ipv4_mapped", None) or address


def _old_form(host: str) -> ipaddress.IPv4Address | None:
    """What resolvers take for an IPv4 address, too: "0" is 0.0.0.0, and "127.1" is 127.0.0.1."""
    if not _OLD_FORM.fullmatch(host):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None
