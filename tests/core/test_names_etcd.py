"""The registry in a real etcd: shared by name servers, with its leases, its watch, its users, and its failures."""

from __future__ import annotations

import gc
import logging
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import trustme
from etcds import Etcd

from pyroxfer_core import Proxy, blocking
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver.server import RunningNameServer, start_ns
from pyroxfer_core.nameserver.storage import Address, Entry, Query, Registry, open_registry
from pyroxfer_core.nameserver.storage.etcd import storage as etcd_storage
from pyroxfer_core.nameserver.storage.etcd.client import EtcdClient, EtcdDownError, b64
from pyroxfer_core.nameserver.storage.etcd.place import EtcdPlace, parse_place

pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
"""The HTTP client leaves a socket to the garbage collector when it is cancelled at certain moments."""

ONE, TWO = Entry.single("PYRO:one@localhost:5551"), Entry.single("PYRO:two@localhost:5552")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """So that such a socket is not found in another test."""
    yield
    gc.collect()


@pytest.fixture
async def registry(etcd_server: Etcd, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Registry]:
    opened = open_registry(etcd_server.url(tmp_path.name))
    nursery.start_soon(opened.run)
    yield opened
    nursery.cancel_scope.cancel()
    await opened.aclose()


async def test_leases_end_in_etcd(registry: Registry) -> None:
    """It is there while it is renewed, and seen to go when it is not."""
    lease = await registry.grant(1)
    await registry.put("one", Entry((Address(ONE.uri, lease=lease.id, ttl=lease.ttl),)))
    await registry.put("stays", TWO)
    revision, _ = await registry.snapshot()
    for _ in range(3):
        await trio.sleep(lease.ttl / 2)
        assert await registry.renew(lease.id) == lease.ttl
    assert await registry.count() == 2
    async with aclosing(registry.changes(revision)) as changes:
        assert (await anext(changes)).entries == {"one": None}
    assert await registry.renew(lease.id) is None
    for unknown in ("", "x", "-1", "1" * 40, "\u0661"):
        assert await registry.renew(unknown) is None
        await registry.revoke(unknown)


async def test_name_servers_share_one_registry(etcd_server: Etcd, tmp_path: Path) -> None:
    """What is registered with one is known to the other, and who watched one goes on with the other when it dies."""
    storage = etcd_server.url(tmp_path.name)
    async with start_ns("localhost", 0, storage=storage) as second:
        async with start_ns("localhost", 0, storage=storage) as first:
            both = await second.name_server.lookup_all("Pyro.NameServer")
            assert {address["uri"] for address in both["addresses"]} == {str(first.uri), str(second.uri)}
            async with Proxy(first.uri) as names, aclosing(first.name_server.watch(prefix="x")) as watching:
                revision = (await anext(watching))["revision"]
                await names.register("x1", ONE.uri)
                assert str(await second.name_server.lookup("x1")) == ONE.uri
                revision = (await anext(watching))["revision"]
        await second.name_server.register("x2", TWO.uri)
        async with aclosing(second.name_server.watch(after=revision, prefix="x")) as resumed:
            assert list((await anext(resumed))["entries"]) == ["x2"]
        only = await second.name_server.lookup_all("Pyro.NameServer")
        assert [address["uri"] for address in only["addresses"]] == [str(second.uri)]
    async with start_ns("localhost", 0, storage=storage) as third:  # started later, and told all the same
        async with aclosing(third.name_server.watch(after=revision, prefix="x")) as resumed:
            assert list((await anext(resumed))["entries"]) == ["x2"]


async def test_who_only_reads_can_follow(registry: Registry, etcd_server: Etcd, tmp_path: Path) -> None:
    """As a dispatcher does: a snapshot, then what changes, also in a part of etcd where others write other things."""
    await registry.put("one", ONE)
    httpx2.post(
        f"{etcd_server.endpoints[0]}/v3/kv/put",
        json={"key": b64(f"/{tmp_path.name}/names/rubbish".encode()), "value": b64(b"rubbish")},
        trust_env=False,
    )
    other = open_registry(etcd_server.url(tmp_path.name))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.run)
        revision, entries = await other.snapshot()
        assert entries == {"one": ONE}
        async with aclosing(other.changes(revision)) as changes:
            await registry.put("two", TWO)
            assert (await anext(changes)).entries == {"two": TWO}
        nursery.cancel_scope.cancel()
    await other.aclose()


async def test_a_change_of_unknown_outcome_is_found_out(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of a registration is lost: that it happened is found out, and it is not refused as taken."""
    real = EtcdClient.call_once
    lost: list[Any] = []

    async def losing(self: EtcdClient, path: str, body: Any) -> Any:
        answer = await real(self, path, body)
        if "compare" in body and not lost:
            lost.append(answer)
            raise EtcdDownError("lost", began=True)
        return answer

    monkeypatch.setattr(EtcdClient, "call_once", losing)
    assert await registry.put("one", ONE, replace=False)
    assert lost
    assert not await registry.put("one", TWO, replace=False)
    assert await registry.get("one") == ONE


async def test_concurrent_changes_of_one_name_are_all_kept(registry: Registry) -> None:
    """Compare and swap: ten add an address at the same time."""
    async with trio.open_nursery() as nursery:
        for port in range(10):
            nursery.start_soon(registry.add, "one", Address(f"PYRO:x@localhost:{port}"))
    found = await registry.get("one")
    assert found is not None
    assert len(found.addresses) == 10


async def test_etcd_is_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lookups go on from memory and say so; changes are refused with one line; afterwards all is as before."""
    monkeypatch.setattr(etcd_storage, "READ_PATIENCE_S", 0.3)
    monkeypatch.setattr(etcd_storage, "PATIENCE_S", 0.3)
    server = Etcd(tmp_path, options=["--unsafe-no-fsync"])
    try:
        await trio.to_thread.run_sync(server.wait)
        async with start_ns("localhost", 0, storage=server.url()) as running, Proxy(running.uri) as ns:
            await ns.register("one", ONE.uri)
            async for item in ns.watch(prefix="one"):
                if item["revision"]:
                    break
            call = ns.lookup("one")
            assert str(await call) == ONE.uri
            assert "PXST" not in call.response_annotations
            server.kill(0)
            call = ns.lookup("one")
            assert str(await call) == ONE.uri
            assert int.from_bytes(call.response_annotations["PXST"]) < 10
            assert "one" in await ns.list()
            for ask in (ns.lookup, ns.lookup_all):
                with pytest.raises(NamingError, match=r"^unknown name: nobody \(from memory; .* for \d+ s\)$"):
                    await ask("nobody")
            with pytest.raises(NamingError, match=r"^cannot reach etcd at http://127.*; nothing was changed$"):
                await ns.register("two", TWO.uri)
            server.start(0)
            await trio.to_thread.run_sync(server.wait)
            while "PXST" in call.response_annotations:
                call = ns.lookup("one")
                await call
                await trio.sleep(0.05)  # of another process
            await ns.register("two", TWO.uri)
    finally:
        server.close()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("lookups are answered from memory" in text for text in said) == 1
    assert sum("is back" in text for text in said) == 1


async def test_a_member_hangs(etcd_server: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections stay open and nothing comes any more: requests and the watch go on with another member."""
    monkeypatch.setattr("pyroxfer_core.nameserver.storage.etcd.client.REQUEST_S", 0.3)
    monkeypatch.setattr(etcd_storage, "CHECK_S", 0.2)
    thawed = trio.Event()
    thawed.set()

    async def pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for data in source:
            await thawed.wait()
            await target.send_all(data)

    async def relay(client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", etcd_server.ports[0]) as server, client:
            async with trio.open_nursery() as both:
                both.start_soon(pass_on, server, client)
                await pass_on(client, server)
                both.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, relay, 0, host="127.0.0.1"))
        through = listener.socket.getsockname()[1]
        url = f"etcd:http://127.0.0.1:{through},127.0.0.1:{etcd_server.ports[0]}/{tmp_path.name}"
        registry = open_registry(url)
        nursery.start_soon(registry.run)
        revision, _ = await registry.snapshot()
        async with aclosing(registry.changes(revision)) as changes:
            await registry.put("one", ONE)
            assert (await anext(changes)).entries == {"one": ONE}
            thawed = trio.Event()
            await registry.put("one", TWO)
            assert (await anext(changes)).entries == {"one": TWO}
            assert await registry.get("one") == TWO
            assert registry.stale_s is None
        nursery.cancel_scope.cancel()
    await registry.aclose()


async def test_no_etcd_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_storage, "PATIENCE_S", 0.1)
    with pytest.raises(NamingError, match=r"cannot reach etcd at http://127\.0\.0\.1:1: "):
        async with start_ns("localhost", 0, storage="etcd:http://127.0.0.1:1"):
            pass


def test_a_name_server_in_a_program_without_a_loop(etcd_server: Etcd, tmp_path: Path) -> None:
    """It serves from the registry that others share, and takes its own entry back."""
    storage = etcd_server.url(tmp_path.name)
    uri, daemon, _ = blocking.start_ns("localhost", 0, storage=storage, enableBroadcast=False)
    with daemon:
        serving = threading.Thread(target=daemon.requestLoop)
        serving.start()
        with blocking.Proxy(uri) as ns:
            ns.register("one", ONE.uri)
            assert str(ns.lookup("one")) == ONE.uri
            assert ns.lookup("Pyro.NameServer") == uri
        daemon.shutdown()
        serving.join(60)
        assert not serving.is_alive()

    async def left() -> set[str]:
        registry = open_registry(storage)
        try:
            return set(await registry.select(Query()))
        finally:
            await registry.aclose()

    assert trio.run(left) == {"one"}


# --- a cluster -----------------------------------------------------------------------------------------------------

CLIENTS = 4
BEFORE, AFTER = 60, 60
"""Registrations acknowledged before the leader is killed, and after."""


async def test_a_cluster_loses_its_leader_under_load(tmp_path: Path) -> None:
    """No registration fails, which means that each is through within the five seconds a change may take; every one
    that was acknowledged is there, the watch goes on without a gap, and lookups too."""
    cluster = Etcd(tmp_path, members=3)
    acknowledged: list[str] = []
    seen: list[str] = []
    killed = False
    try:
        await trio.to_thread.run_sync(cluster.wait)

        async def register(running: RunningNameServer, client: int) -> None:
            nonlocal killed
            async with Proxy(running.uri) as ns:
                for number in range((BEFORE + AFTER) // CLIENTS):
                    name = f"n{client}-{number}"
                    await ns.register(name, ONE.uri)
                    acknowledged.append(name)
                    if len(acknowledged) >= BEFORE and not killed:
                        killed = True
                        await trio.to_thread.run_sync(lambda: cluster.kill(cluster.leader()))
                    assert str(await ns.lookup(name)) == ONE.uri

        async def watch(running: RunningNameServer) -> None:
            async with Proxy(running.uri) as ns:
                async for item in ns.watch(prefix="n"):
                    seen.extend(item["entries"])
                    if len(seen) == BEFORE + AFTER:
                        return

        storage = cluster.url()
        async with (
            start_ns("localhost", 0, storage=storage) as first,
            start_ns("localhost", 0, storage=storage) as second,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(watch, second)
            for client in range(CLIENTS):
                nursery.start_soon(register, (first, second)[client % 2], client)
        async with start_ns("localhost", 0, storage=storage) as third:
            assert set(acknowledged) <= set(await third.name_server.list())
    finally:
        cluster.close()
    assert killed
    assert len(acknowledged) == len(set(acknowledged)) == BEFORE + AFTER
    assert sorted(seen) == sorted(acknowledged)


# --- users and TLS -------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd with TLS, and the user ``ann`` who may use what is below /ann/."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    with (tmp_path / "cert.pem").open("wb") as file:
        for blob in certificate.cert_chain_pems:
            file.write(blob.bytes())
    tls = ["--cert-file", str(tmp_path / "cert.pem"), "--key-file", str(tmp_path / "key.pem"), "--unsafe-no-fsync"]
    server = Etcd(tmp_path, options=tls, scheme="https")
    try:
        verify = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        server.wait(verify)
        with httpx2.Client(base_url=server.endpoints[0], verify=verify, trust_env=False) as client:
            for path, body in (
                ("user/add", {"name": "root", "password": "root"}),
                ("user/grant", {"user": "root", "role": "root"}),
                ("role/add", {"name": "ann"}),
                (
                    "role/grant",
                    {
                        "name": "ann",
                        "perm": {"permType": "READWRITE", "key": b64(b"/ann/"), "range_end": b64(b"/ann0")},
                    },
                ),
                ("user/add", {"name": "ann", "password": "secret"}),
                ("user/grant", {"user": "ann", "role": "ann"}),
                ("auth/enable", {}),
            ):
                path = f"/v3/auth/{path}" if path != "auth/enable" else "/v3/auth/enable"
                assert client.post(path, json=body).status_code == 200
        yield server
    finally:
        server.close()


async def test_users_and_tls(guarded: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right user works in the part that was granted and nowhere else; every mistake is one clear line."""
    (tmp_path / "password").write_text("secret\n")
    options = f"?cacert={tmp_path / 'ca.pem'}&password_file={tmp_path / 'password'}"
    async with start_ns("localhost", 0, storage=guarded.url("ann", "ann@") + options) as running:
        await running.name_server.register("one", ONE.uri)
        assert str(await running.name_server.lookup("one")) == ONE.uri
        async with aclosing(running.name_server.watch(prefix="one")) as watching:
            assert "one" in (await anext(watching))["entries"]
    for place, text in (
        (guarded.url("other", "ann@") + options, "permission denied"),
        (guarded.url("ann") + f"?cacert={tmp_path / 'ca.pem'}", "user name is empty"),
        (guarded.url("ann", "bob@") + options, "authentication failed"),
        (guarded.url("ann", "ann@") + f"?password_file={tmp_path / 'password'}", "certificate verify failed"),
        (guarded.url("ann") + "?cacert=/nowhere", "cannot use the certificates"),
        (guarded.url("ann", "ann@") + options.replace("password_file=", "password_file=/nowhere"), "cannot read"),
        (guarded.url("ann", "ann@"), "needs a password: set PYROXFER_ETCD_PASSWORD"),
    ):
        with pytest.raises(NamingError, match=text) as caught:
            async with start_ns("localhost", 0, storage=place):
                pass
        assert "secret" not in str(caught.value)
    monkeypatch.setenv("PYROXFER_ETCD_PASSWORD", "secret")
    async with start_ns(
        "localhost", 0, storage=guarded.url("ann", "ann@") + f"?cacert={tmp_path / 'ca.pem'}"
    ) as running:
        assert str(await running.name_server.lookup("one")) == ONE.uri


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://localhost", EtcdPlace(("http://localhost:2379",))),
        ("https://a:1,b/x/", EtcdPlace(("https://a:1", "https://b:2379"), "/x/")),
        ("https://ann@[::1]:5/a/b", EtcdPlace(("https://[::1]:5",), "/a/b/", "ann")),
        ("https://h?cacert=/c&cert=/d&key=/e", EtcdPlace(("https://h:2379",), cacert="/c", cert="/d", key="/e")),
    ],
)
def test_urls(url: str, place: EtcdPlace) -> None:
    assert parse_place(url) == place


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "invalid etcd URL"),
        ("ftp://h", "invalid etcd URL"),
        ("http://", "invalid etcd URL"),
        ("http://h:99999", "invalid etcd member"),
        ("http://a,,b", "invalid etcd member"),
        ("https://ann:secret@h", "a password does not belong"),
        ("http://ann@example.org", "clear text"),
        ("https://h?ca=/x", "unknown option 'ca'"),
        ("https://h?cacert", "invalid options"),
    ],
)
def test_bad_urls(url: str, text: str) -> None:
    """Each is a usage error that does not repeat a password."""
    with pytest.raises(ValueError, match=text) as caught:
        open_registry(f"etcd:{url}" if url else "etcd:x")
    assert "secret" not in str(caught.value)
