"""The name server and the entry of a name."""

from __future__ import annotations

import difflib
import socket
from typing import Any, Final

import trio

from ...client.proxy import Proxy
from ...errors import NamingError, PyroError
from ...nameserver.addresses import is_loopback, is_this_machine, is_wildcard, local_address_towards
from ...nameserver.lookup import checked_listing, locate_ns, name_server_uri
from ...nameserver.rules import NAME_SERVER
from ...settings import Settings
from ...uri import Uri
from .._run import ExitCode, exit_code_of
from .findings import Report
from .place import first_bytes, what_speaks

REACH_BACK_S: Final = 10.0


async def look_at_name_server(report: Report, host: str | None, port: int | None, settings: Settings) -> Proxy | None:
    """Find it, and look at the address it shows to others; None when there is none."""
    try:
        ns = await locate_ns(host, port, settings=settings)
    except PyroError as error:
        tls = settings.ssl_client_context is not None
        await _say_why(report, error, host, port or settings.ns_port, tls=tls)
        return None
    here = ns._pyroUri
    report.ok("name server", f"found at {here.location}")
    try:
        await _look_at_own_entry(report, ns, here)
        await _look_at_way_back(report, ns)
    except PyroError as error:
        report.problem("name server", f"{here.location}: {error}", "look into its log", exit_code_of(error))
        ns._pyroRelease()
        return None
    return ns


async def _say_why(report: Report, error: PyroError, host: str | None, port: int, *, tls: bool) -> None:
    """There is no name server: because something else is where it should be, or for want of one."""
    where = None if host is None else name_server_uri(host, port)
    first = b"" if where is None else await first_bytes(where)
    if where is not None and first and (tls or not first.startswith(b"PYRO")):
        what, advice = what_speaks(first, tls=tls)
        report.problem("name server", f"{where.location} is {what}", advice, ExitCode.PROTOCOL)
        return
    report.problem(
        "name server",
        str(error),
        "start one with 'pyroxfer ns' (beyond this machine: -n ADDRESS), say where it is (NAME@HOST:PORT, or "
        "PYROXFER_NS_HOST), and let TCP port 9090 and, for broadcasts, UDP port 9091 through the firewall",
        ExitCode.NETWORK,
    )


async def look_up(report: Report, ns: Proxy, name: str) -> list[Uri]:
    """The addresses under a name, those that others cannot use with a warning."""
    try:
        uris = await _addresses_of(ns, name)
    except NamingError as error:
        near = difflib.get_close_matches(name, checked_listing(await ns.list(return_metadata=True)), n=1)
        advice = f"did you mean {near[0]!r}? " if near else ""
        report.problem(
            "registration",
            str(error),
            f"{advice}'pyroxfer nsc list' shows all names; a daemon has to register its own, and to renew its lease",
            ExitCode.NOT_FOUND,
        )
        return []
    for uri in uris:
        report.ok("registration", f"{name} is {uri}")
    return [uri for uri in uris if _is_usable(report, uri, ns)]


def _is_usable(report: Report, uri: Uri, ns: Proxy) -> bool:
    """Whether the host in a registered URI can be right."""
    if uri.host is None or uri.protocol != "PYRO":
        return True
    if is_wildcard(uri.host):
        report.problem(
            "registered address",
            f"{uri.location} is a wildcard address, to which nobody can connect",
            "start the daemon with the address that clients reach as host=, or as nathost= beside host=''",
            ExitCode.NETWORK,
        )
        return False
    if is_loopback(uri.host):
        where = str(ns._pyroUri.host or "localhost")
        if not is_loopback(where) and not is_this_machine(where):
            report.problem(
                "registered address",
                f"{uri.location} was registered with the name server at {where}: it means this machine here",
                "start the daemon with host=ADDRESS, one that other machines reach",
                ExitCode.NETWORK,
            )
            return False
        report.warn(
            "registered address",
            f"{uri.location} can only be reached from this machine",
            "start the daemon with host=ADDRESS, one that other machines reach, if others shall use it",
        )
    return True


async def _addresses_of(ns: Proxy, name: str) -> list[Uri]:
    if ns._pyroMetadata is not None and "lookup_all" in ns._pyroMetadata.methods:
        told = await ns.lookup_all(name)
        return [Uri(address["uri"]) for address in told["addresses"]]
    return [Uri(await ns.lookup(name))]


async def _look_at_own_entry(report: Report, ns: Proxy, here: Uri) -> None:
    shown = Uri(await ns.lookup(NAME_SERVER))
    names = await ns.count()
    if shown.host is not None and is_loopback(shown.host):
        report.warn(
            "visible interface",
            f"the name server listens at {shown.location}: only programs on its own machine find it ({names} names)",
            "start it with -n ADDRESS, one that other machines reach, if others shall use it",
        )
    elif shown.location != here.location:
        report.ok("visible interface", f"it calls itself {shown.location} ({names} names)")
    else:
        report.ok("visible interface", f"it has {names} names")


async def _look_at_way_back(report: Report, ns: Proxy) -> None:
    """Whether the name server's machine can connect to a port of this one, and as whom it sees us."""
    link = ns._pyroLink
    if ns._pyroMetadata is None or "reach_back" not in ns._pyroMetadata.methods or ns._pyroUri.sockname or not link:
        return
    ours = local_address_towards(link.connection.peer.rpartition(":")[0].strip("[]"))
    if ours is None:
        return
    with socket.socket(socket.AF_INET6 if ":" in ours else socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind((ours, 0))
        listening.listen(1)
        port = listening.getsockname()[1]
        with trio.move_on_after(REACH_BACK_S):
            answer: dict[str, Any] = await ns.reach_back(port)
            _say_way_back(report, answer, ours)


def _say_way_back(report: Report, answer: dict[str, Any], ours: str) -> None:
    seen = str(answer.get("address"))
    if seen != ours:
        report.warn(
            "NAT",
            f"the name server sees {seen}, while the address here is {ours}: something translates addresses between",
            f"start daemons here with nathost={seen!r} and a port that is forwarded (natport=)",
        )
    if answer.get("reachable"):
        report.ok("way back", f"the name server's machine can connect to {seen}")
    else:
        report.warn(
            "way back",
            f"the name server's machine cannot connect to {seen} ({answer.get('reason')}), so daemons here are not "
            "reached from there",
            "let the ports of your daemons through the firewall of this machine, or forward them (natport=)",
        )
