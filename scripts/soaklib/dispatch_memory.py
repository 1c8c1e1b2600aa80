"""Many clients send large messages through a dispatcher at once, and get them back: what does it hold meanwhile?"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from dispatch_memory_arguments import parser
from fleet import Service
from ports import free_ports

from pyroxfer_core.wire import V502, Flags, Message, MessageType, write_blob_info

MIB = 1024 * 1024
LIMIT_MIB = 64
"""What it may hold, the interpreter included."""
WELCOME = b"# serpent utf-8 python3.2\n{'handshake':'hello','meta':{'methods':['process'],'oneway':(),'attrs':()}}"
HELLO = "# serpent utf-8 python3.2\n{{'handshake':'hello','object':'{}'}}"
BLOB_OBJECT = "pyroxfer.dispatcher"
Stream = trio.SocketStream


async def exactly(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise SystemExit("a connection ended too early")
        data += more
    return data


async def head_of(stream: Stream) -> tuple[bytes, int]:
    """Header and annotations of the next message, and the length of its body."""
    head = await exactly(stream, V502.header_size)
    header = V502.parse_header(head)
    return head + await exactly(stream, header.annotations_length), header.body_length


async def echo(stream: Stream) -> None:
    """A back end that answers every body with one as large."""
    async with stream:
        _, length = await head_of(stream)
        await exactly(stream, length)
        await stream.send_all(V502.encode(Message(MessageType.CONNECTOK, 0, "serpent", 0, WELCOME)))
        head, length = await head_of(stream)
        header = V502.parse_header(head)
        left = length
        while left:
            left -= len(await stream.receive_some(min(left, MIB)))
        answer = Message(MessageType.RESULT, header.seq, header.serializer, 0, b"")
        await send(stream, V502.encode_head(answer, length), length)


async def call(port: int, object_id: str, size: int) -> None:
    """One client: a message of this size, and all of it back."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(
            V502.encode(Message(MessageType.CONNECT, 0, "serpent", 0, HELLO.format(object_id).encode()))
        )
        _, length = await head_of(stream)
        await exactly(stream, length)
        request = Message(MessageType.INVOKE, 1, "msgpack", 0, b"")
        if object_id == BLOB_OBJECT:
            request.flags = Flags.KEEPSERIALIZED
            request.annotations["BLBI"] = write_blob_info("large", object_id, "process")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, stream, V502.encode_head(request, size), size)
            _, length = await head_of(stream)
            if length != size:
                raise SystemExit(f"{size} bytes were sent and {length} came back")
            while length:
                length -= len(await stream.receive_some(min(length, MIB)))


async def send(stream: Stream, head: bytes, size: int) -> None:
    await stream.send_all(head)
    piece = bytes(min(size, MIB))
    for at in range(0, size, MIB):
        await stream.send_all(piece[: size - at])


async def serve(listener: trio.SocketListener, handle: Callable[[Stream], Awaitable[None]]) -> None:
    await trio.serve_listeners(handle, [listener])


def peak_mib(pid: int) -> float:
    """The largest resident size so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the system does not tell")


async def measure(clients: int, size: int) -> float:
    """The dispatcher's peak, in MiB: half of the clients send blobs, half are in transparent mode."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        backend = listener.socket.getsockname()[1]
        config = Path(folder) / "dispatcher.toml"
        config.write_text(
            f'listen = "127.0.0.1:{port}"\n[[services]]\nname = "large"\nobjects = ["large"]\n'
            f'[[services.backends]]\nname = "b"\nuri = "PYRO:large@127.0.0.1:{backend}"\n'
        )
        program = [sys.executable, "-c", "from pyroxfer_dispatcher.cli import main; main()"]
        command = [*program, "run", "-c", str(config)]
        dispatcher = Service("dispatcher", command, victim=False, errors=Path(folder) / "errors.log")
        await trio.to_thread.run_sync(dispatcher.start)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, echo)
            async with trio.open_nursery() as calls:
                for number in range(clients):
                    calls.start_soon(call, port, "large" if number % 2 else BLOB_OBJECT, size)
            nursery.cancel_scope.cancel()
        peak = peak_mib(dispatcher.pid)
        await trio.to_thread.run_sync(dispatcher.stop)
        return peak


def main() -> None:
    chosen = parser().parse_args()
    peak = trio.run(measure, chosen.clients, chosen.mib * MIB)
    print(f"{chosen.clients} clients x {chosen.mib} MiB, there and back: the dispatcher held {peak:.1f} MiB at most")
    sys.exit(peak >= LIMIT_MIB)


if __name__ == "__main__":
    main()
