#!/usr/bin/env python3
"""Hold many idle connections against one daemon, and tell what they cost; run it with PYTHONPATH=core.

    scripts/idle_connections.py --count 10000

Half of them are stock clients, half are ours with everything agreed on; each has made a call. The daemon runs in a
process of its own. Fails (exit 1) when a connection costs a thread, is lost, or keeps the daemon from answering.
"""

from __future__ import annotations

import argparse
import re
import resource
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

sys.path.append(str(Path(__file__).parent / "sharedlib"))
from numbers_wanted import at_least

from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core.wire import Decoder, Message, MessageType, codec_for
from pyroxfer_core.wire.features import Feature
from pyroxfer_core.wire.session import ClientSession

SPARE_DESCRIPTORS = 100
ANSWER_WITHIN_S = 30


@expose
class Target:
    """What is called."""

    async def echo(self, value: object) -> object:
        return value

    def plain(self, value: object) -> object:
        return value


async def serve(count: int) -> None:
    """Serve until the end of standard input."""
    async with Daemon("127.0.0.1", settings=Settings(max_connections=count + SPARE_DESCRIPTORS)) as daemon:
        print(daemon.register(Target(), "target"), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


@dataclass(frozen=True)
class Cost:
    """What a process holds."""

    threads: int
    kib: int

    @classmethod
    def of(cls, pid: int) -> Cost:
        status = Path(f"/proc/{pid}/status").read_text()
        threads, kib = (re.search(rf"^{key}:\s+(\d+)", status, re.M) for key in ("Threads", "VmRSS"))
        assert threads is not None
        assert kib is not None
        return cls(int(threads[1]), int(kib[1]))


def raise_limit(descriptors: int) -> None:
    """Allow this process, and those it starts, so many open sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < descriptors:
        sys.exit(f"{descriptors} open files are needed, and {hard} are allowed here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, descriptors), hard))


def connect(place: tuple[str, int], offer: int) -> socket.socket:
    """A connection after its handshake and one call."""
    sock = socket.create_connection(place)
    codec, session = codec_for(502), ClientSession[str](0, offer)
    decoder = Decoder(codec)
    body = b"# serpent utf-8 python3.2\n{'handshake':'hello','object':'target'}"
    call = b"# serpent utf-8 python3.2\n('target','echo',(1,),{})"
    for message in (
        lambda: session.connect(body, "serpent", 0, {}, None),
        lambda: session.invoke("call", Message(MessageType.INVOKE, 0, "serpent", 0, call)),
    ):
        sock.sendall(codec.encode(message()))
        while (answer := decoder.next_event()) is None:
            decoder.feed(sock.recv(65536))
        assert isinstance(answer, Message)
        session.receive(answer)
    return sock


def is_open(sock: socket.socket) -> bool:
    """Whether the daemon still holds it."""
    sock.setblocking(False)
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True


async def answers(uri: str) -> float:
    """Seconds that a new client waits for two answers."""
    began = trio.current_time()
    with trio.fail_after(ANSWER_WITHIN_S):
        async with Proxy(uri) as proxy:
            assert await proxy.echo(1) == 1
            assert await proxy.plain(2) == 2
    return trio.current_time() - began


def campaign(count: int) -> list[str]:
    """Hold the connections; what is wrong."""
    raise_limit(count + SPARE_DESCRIPTORS)
    command = [sys.executable, __file__, "--serve", "--count", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        uri = daemon.stdout.readline().strip()
        host, _, port = uri.rpartition("@")[2].partition(":")
        trio.run(answers, uri)
        before = Cost.of(daemon.pid)
        socks = [connect((host, int(port)), Feature.ALL if number % 2 else 0) for number in range(count)]
        after = Cost.of(daemon.pid)
        waited = trio.run(answers, uri)
        lost = sum(not is_open(sock) for sock in socks)
        for sock in socks:
            sock.close()
        daemon.stdin.close()
    threads, each = after.threads - before.threads, (after.kib - before.kib) / max(count, 1)
    print(f"{count} idle connections: {threads} threads more, {each:.1f} KiB each")
    print(f"two calls of a new client took {waited * 1000:.0f} ms")
    found = [f"{lost} connections were lost"] if lost else []
    if after.threads > before.threads:
        found.append(f"{after.threads - before.threads} threads more than before")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=at_least(int, 1), default=10_000, help="connections to hold")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        raise_limit(options.count + SPARE_DESCRIPTORS)
        trio.run(serve, options.count)
        return 0
    found = campaign(options.count)
    print("\n".join(found) or "no thread, nothing lost")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
