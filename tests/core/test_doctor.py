"""The doctor: broken set-ups, each with what it says and which exit code it is."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from certificates import Certificates
from click.testing import CliRunner

from pyroxfer_core import Daemon, Settings, expose, locate_ns
from pyroxfer_core.access import Tokens
from pyroxfer_core.cli._run import ExitCode
from pyroxfer_core.cli.diagnosis import machine, names, peer, place
from pyroxfer_core.cli.diagnosis.findings import Finding, Report, Verdict
from pyroxfer_core.cli.doctor import diagnose, doctor, parse_address
from pyroxfer_core.nameserver.server import start_ns
from pyroxfer_core.nameserver.service import NameServer
from pyroxfer_core.nameserver.storage import Entry, MemoryStorage
from pyroxfer_core.uri import Uri

LOCAL = partial(start_ns, "localhost", 0)


@expose
class Thing:
    async def work(self) -> int:
        return 1


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "BLOCKS", 2)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not answer is not waited for long."""
    monkeypatch.setattr(peer, "HANDSHAKE_S", 0.3)
    monkeypatch.setattr(place, "CONNECT_S", 0.3)
    monkeypatch.setattr(place, "LISTEN_S", 0.3)


async def findings(address: str | None, settings: Settings | None = None) -> Report:
    report = Report()
    await diagnose(report, address, settings or Settings())
    for found in report.findings:
        assert bool(found.advice) == (found.verdict is not Verdict.OK), found
    return report


def problem(report: Report) -> Finding:
    """The only one."""
    (found,) = [one for one in report.findings if one.verdict is Verdict.PROBLEM]
    assert report.exit_code == found.code
    return found


def texts(report: Report, verdict: Verdict) -> dict[str, str]:
    return {found.check: found.text for found in report.findings if found.verdict is verdict}


@asynccontextmanager
async def server_that_says(answer: bytes | None) -> AsyncIterator[str]:
    """Something else than a daemon; ``host:port``. None: it is silent."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            if answer is None:
                await trio.sleep_forever()
            await stream.send_all(answer)
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_all_is_well() -> None:
    async with LOCAL() as running, Daemon() as daemon:
        uri = daemon.register(Thing(), "thing")
        await running.name_server.register("a.thing", uri)
        report = await findings(f"a.thing@{running.internal_uri.location}")
    assert report.exit_code == ExitCode.OK
    fine = texts(report, Verdict.OK)
    assert fine["registration"] == f"a.thing is {uri}"
    assert fine["protocol"] == "it speaks 502 (Pyro5) and 48 (Pyro4)"
    assert fine["serializers"] == "it accepts json, marshal, msgpack, serpent"
    assert fine["object"] == "thing has 1 methods and 0 attributes"
    assert fine["way back"] == "the name server's machine can connect to 127.0.0.1"
    assert {"connection", "round trip", "throughput", "raw side stream", "name server"} <= set(fine)
    warned = texts(report, Verdict.WARNING)
    assert "only programs on its own machine find it" in warned["visible interface"]
    assert "can only be reached from this machine" in warned["registered address"]


async def test_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    report = await findings("a@localhost:1")
    found = problem(report)
    assert (found.check, found.code) == ("name server", ExitCode.NETWORK)
    assert "'pyroxfer ns'" in found.advice
    assert "firewall" in found.advice


async def test_a_name_nobody_registered() -> None:
    async with LOCAL() as running:
        await running.name_server.register("thermometer", "PYRO:x@localhost:1")
        found = problem(await findings(f"thermometr@{running.internal_uri.location}"))
    assert (found.check, found.code) == ("registration", ExitCode.NOT_FOUND)
    assert found.text == "unknown name: thermometr"
    assert found.advice.startswith("did you mean 'thermometer'? ")


async def test_a_wildcard_address_is_registered() -> None:
    """As Pyro's own name server lets in."""
    async with LOCAL() as running:
        await running.name_server._registry.put("old", Entry.single("PYRO:x@0.0.0.0:5000"))
        found = problem(await findings(f"old@{running.internal_uri.location}"))
    assert (found.check, found.code) == ("registered address", ExitCode.NETWORK)
    assert "nathost=" in found.advice
    assert problem(await findings("0.0.0.0:5000")).check == "address"


async def test_a_loopback_address_of_another_machine_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with LOCAL() as running:
        await running.name_server.register("far", "PYRO:x@localhost:5000")
        monkeypatch.setattr(names, "is_this_machine", lambda host: False)
        monkeypatch.setattr(names, "is_loopback", lambda host: host == "localhost")
        found = problem(await findings(f"far@127.0.0.1:{running.internal_uri.port}"))
    assert (found.check, found.code) == ("registered address", ExitCode.NETWORK)
    assert "it means this machine here" in found.text


async def test_a_name_that_stands_for_another() -> None:
    async with LOCAL() as running:
        await running.name_server.register("alias", "PYRONAME:other")
        report = await findings(f"alias@{running.internal_uri.location}")
    assert "pyroxfer doctor PYRONAME:other" in texts(report, Verdict.OK)["registration"]


async def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = problem(await findings(f"127.0.0.1:{port}"))
    assert (found.check, found.code) == ("connection", ExitCode.NETWORK)
    assert "refuses" in found.text
    assert "start the daemon" in found.advice


@pytest.mark.usefixtures("impatient")
async def test_packets_are_dropped() -> None:
    """A listener whose queue is full drops them, as a firewall does."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        found = problem(await findings(f"127.0.0.1:{full.getsockname()[1]}"))
        for one in waiting:
            one.close()
    assert (found.check, found.code) == ("connection", ExitCode.TIMEOUT)
    assert "firewall" in found.advice
    assert "nathost=" in found.advice


async def test_only_one_address_of_a_host_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with IPv4 and IPv6 whose daemon listens on one of them."""
    async with Daemon("127.0.0.1") as daemon:
        port = daemon.register(Thing(), "thing").port

        async def both(host: str, port: int, **kwargs: Any) -> list[Any]:
            four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
            return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)), four]

        monkeypatch.setattr(trio.socket, "getaddrinfo", both)
        report = Report()
        assert await place.look_at_place(report, Uri(f"PYRO:thing@two.example:{port}"))
    assert [found.check for found in report.findings] == ["connection", "IPv4 and IPv6"]
    assert "::1" in report.findings[1].text


async def test_a_host_name_that_does_not_exist() -> None:
    found = problem(await findings("nothing.invalid:5000"))
    assert (found.check, found.code) == ("DNS", ExitCode.NETWORK)


async def test_a_socket_file_that_is_left_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "s"))
    found = problem(await findings(f"./u:{tmp_path / 's'}"))
    assert (found.check, found.code) == ("connection", ExitCode.NETWORK)
    assert "left over" in found.advice
    assert "correct the path" in problem(await findings(f"./u:{tmp_path / 'none'}")).advice
    async with Daemon(unixsocket=str(tmp_path / "d")) as daemon:
        assert (await findings(daemon.location)).exit_code == ExitCode.OK


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("answer", "text", "advice"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a web server", "correct the port"),
        (b"SSH-2.0-OpenSSH\r\n", "an SSH server", "correct the port"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "a TLS server", "--tls"),
        (b"220 mail\r\n", "begins with b'220 mail", "correct the port"),
        (b"", "stays silent", "HMAC key"),
        (None, "stays silent", "HMAC key"),
    ],
)
async def test_something_else_listens(answer: bytes | None, text: str, advice: str) -> None:
    async with server_that_says(answer) as where:
        found = problem(await findings(where))
    assert (found.check, found.code) == ("protocol", ExitCode.PROTOCOL)
    assert text in found.text
    assert advice in found.advice


async def test_something_else_listens_where_the_name_server_should_be() -> None:
    """That is said, and not that one has to be started."""
    async with server_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n") as where:
        found = problem(await findings(f"a@{where}"))
    assert (found.check, found.code) == ("name server", ExitCode.PROTOCOL)
    assert found.text == f"{where} is a web server"
    assert "correct the port" in found.advice


@pytest.mark.parametrize(
    ("host", "port"), [("PYROXFER_NS_HOST", "PYROXFER_NS_PORT"), ("PYRO_NS_HOST", "PYRO_NS_PORT")]
)
async def test_the_name_server_of_the_environment(host: str, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at without an address, and asked for a bare name; an address that says where goes before it."""
    async with LOCAL() as running, LOCAL() as other:
        monkeypatch.setenv(host, "127.0.0.1")
        monkeypatch.setenv(port, str(running.internal_uri.port))
        for arguments, ns, code in (
            ([], running, ExitCode.OK),
            (["nobody"], running, ExitCode.NOT_FOUND),
            ([f"nobody@{other.internal_uri.location}"], other, ExitCode.NOT_FOUND),
        ):
            done = await trio.to_thread.run_sync(CliRunner().invoke, doctor, arguments)
            assert done.exit_code == code, done.output
            assert f"name server: found at 127.0.0.1:{ns.internal_uri.port}" in done.stdout.replace(
                "localhost", "127.0.0.1"
            )


async def test_a_certificate_whose_time_is_over(certificates: Certificates) -> None:
    """Or whose time has come for one of two clocks only."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.expired)
    client = Settings(ssl_client_context=certificates.client_context())
    async with Daemon("127.0.0.1", settings=Settings(ssl_server_context=server)) as daemon:
        found = problem(await findings(daemon.location, client))
    assert (found.check, found.code) == ("access", ExitCode.REFUSED)
    assert "expired" in found.text
    assert "clocks" in found.advice


async def test_tls_is_on_there_and_not_here_or_not_trusted() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    async with Daemon("127.0.0.1", settings=Settings(ssl_server_context=server)) as daemon:
        plain = problem(await findings(daemon.location))
        stranger = problem(await findings(daemon.location, Settings(ssl_client_context=client)))
        authority.configure_trust(client)
        assert (await findings(daemon.location, Settings(ssl_client_context=client))).exit_code == ExitCode.OK
    assert (plain.check, plain.code) == ("protocol", ExitCode.PROTOCOL)
    assert "a TLS server" in plain.text
    assert (stranger.check, stranger.code) == ("access", ExitCode.REFUSED)
    assert "CA" in stranger.text


@pytest.mark.parametrize("address", ["{}", "PYRONAME:a@{}"])
async def test_tls_is_on_here_and_not_there(address: str) -> None:
    """Also where it is the name server."""
    client = Settings(ssl_client_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    async with LOCAL() as ns:
        found = problem(await findings(address.format(ns.uri.location), client))
    assert found.code == ExitCode.PROTOCOL
    assert "without TLS" in found.text
    assert "leave out --tls" in found.advice


async def test_a_token_is_asked_for() -> None:
    async with Daemon(settings=Settings(tokens=Tokens({"ann": "x" * 32}))) as daemon:
        found = problem(await findings(daemon.location))
        assert (await findings(daemon.location, Settings(token="x" * 32))).exit_code == ExitCode.OK
    assert (found.check, found.code) == ("access", ExitCode.REFUSED)
    assert "PYROXFER_TOKEN" in found.advice


async def test_hmac_keys_that_differ() -> None:
    async with Daemon(settings=Settings(hmac_key=b"right")) as daemon:
        for settings in (Settings(), Settings(hmac_key=b"wrong")):
            found = problem(await findings(daemon.location, settings))
            assert "HMAC" in found.advice
            assert found.code in (ExitCode.REFUSED, ExitCode.PROTOCOL)
        report = await findings(daemon.location, Settings(hmac_key=b"right"))
    assert report.exit_code == ExitCode.OK
    assert texts(report, Verdict.OK)["protocol"] == "it speaks 48 (Pyro4)"


async def test_serializers_that_do_not_fit() -> None:
    async with Daemon(settings=Settings(accepted_serializers=frozenset({"json"}))) as daemon:
        report = await findings(daemon.location)
    found = problem(report)
    assert (found.check, found.code) == ("serializers", ExitCode.PROTOCOL)
    assert "serializer='json'" in found.advice


async def test_an_object_that_is_not_there() -> None:
    async with Daemon() as daemon:
        daemon.register(Thing(), "thing")
        found = problem(await findings(f"PYRO:thnig@{daemon.location}"))
    assert (found.check, found.code) == ("object", ExitCode.NOT_FOUND)
    assert found.advice.endswith("registered there: thing")


async def test_the_own_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("localhost", "cannot be reached from elsewhere"),
        ("nothing.invalid", "not found in the DNS"),
    ):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        report = Report()
        await machine.look_at_machine(report)
        assert report.findings[0].check == "own host name"
        assert text in report.findings[0].text
        assert "host=" in report.findings[0].advice


async def test_a_machine_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OUTSIDE", {"IPv4": (socket.AF_INET, "255.255.255.255")})
    report = Report()
    await machine.look_at_machine(report)
    assert "no route" in texts(report, Verdict.WARNING)["visible address"]


def test_the_way_back_is_closed_or_translated() -> None:
    report = Report()
    names._say_way_back(report, {"address": "192.0.2.9", "reachable": False, "reason": "refused"}, "10.0.0.1")
    assert [found.check for found in report.findings] == ["NAT", "way back"]
    assert "nathost='192.0.2.9'" in report.findings[0].advice
    assert "firewall" in report.findings[1].advice


async def test_a_name_server_connects_back_to_its_caller_only() -> None:
    ns = NameServer(MemoryStorage())
    assert (await ns.reach_back(80))["reachable"] is False
    async with LOCAL() as running:
        async with await locate_ns("localhost", running.internal_uri.port) as remote:
            with socket.create_server(("127.0.0.1", 0)) as open_port:
                port = open_port.getsockname()[1]
                answer = await remote.reach_back(port)
                assert answer == {"address": "127.0.0.1", "reachable": True, "reason": None}
            answer = await remote.reach_back(port)
            assert (answer["reachable"], "refused" in answer["reason"]) == (False, True)
            for wrong in (0, 65536):
                with pytest.raises(Exception, match="1 to 65535"):
                    await remote.reach_back(wrong)
            with pytest.raises(TypeError, match="port must be an int"):
                await remote.reach_back("22")


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("h:1", "PYRO:Pyro.Daemon@h:1"),
        ("[::1]:1", "PYRO:Pyro.Daemon@[::1]:1"),
        ("./u:/x", "PYRO:Pyro.Daemon@./u:/x"),
        ("name", "PYRONAME:name"),
        ("name@h:1", "PYRONAME:name@h:1"),
        ("pyro:o@h:1", "PYRO:o@h:1"),
        ("PYRONAME:n", "PYRONAME:n"),
    ],
)
def test_addresses(text: str, uri: str) -> None:
    assert parse_address(text) == Uri(uri)


@pytest.mark.parametrize("text", ["", "a b", "PYRO:x", "PYROMETA:a,b", "h:x"])
def test_bad_addresses_are_usage_errors(text: str) -> None:
    done = CliRunner().invoke(doctor, [text])
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.count("\n") == 1


def test_the_command_prints_each_finding_and_its_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        place = f"127.0.0.1:{closed.getsockname()[1]}"
    done = CliRunner().invoke(doctor, [place])
    assert done.exit_code == ExitCode.NETWORK
    assert f"PROBLEM connection: {place}: 127.0.0.1 refuses" in done.stdout
    assert "        -> start the daemon" in done.stdout
    done = CliRunner().invoke(doctor, [place, "--json"])
    assert done.exit_code == ExitCode.NETWORK
    last = json.loads(done.stdout.splitlines()[-1])
    assert set(last) == {"check", "verdict", "text", "advice"}
    assert last["verdict"] == "problem"


def test_the_command_speaks_tls_and_shows_a_token(tmp_path: Path) -> None:
    """With the options of every client command."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    (tmp_path / "token").write_text("x" * 32)
    settings = Settings(ssl_server_context=server, tokens=Tokens({"ann": "x" * 32}))

    async def ask(*options: str) -> Any:
        async with Daemon("127.0.0.1", settings=settings) as daemon:
            arguments = [daemon.location, *options]
            return await trio.to_thread.run_sync(lambda: CliRunner().invoke(doctor, arguments))

    done = trio.run(ask, "--tls-ca", str(tmp_path / "ca.pem"), "--token-file", str(tmp_path / "token"))
    assert done.exit_code == ExitCode.OK, done.output
    done = trio.run(ask, "--tls-ca", str(tmp_path / "ca.pem"))
    assert done.exit_code == ExitCode.REFUSED
    assert "PROBLEM access" in done.stdout
