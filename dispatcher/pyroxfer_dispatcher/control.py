"""The control socket: a request is one JSON object on a line, so is each of its answers, and the last is marked.

Who may use it is said by the file: it belongs to the user of the dispatcher and is open to nobody else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import trio

from pyroxfer_core.errors import CommunicationError, PyroError

from .admin import note
from .handover import next_line

MAX_REQUEST: Final = 64 * 1024
"""Bytes of one request."""
MAX_AT_ONCE: Final = 32
"""Connections; more wait."""
REQUEST_S: Final = 10.0
"""Seconds in which a request has to come, and an answer has to be taken."""

Answer = dict[str, Any]
Request = dict[str, Any]
Handler = Callable[[Request], AsyncGenerator[Answer, None]]
"""Answers a request. CommandError: it cannot be done, with a sentence."""


class CommandError(PyroError):
    """The command cannot be carried out; the text says why, and what can be."""


def bind_control(path: str) -> socket.socket:
    """The listening socket, open to its owner only. What a dead dispatcher left behind is replaced.

    Raises:
        CommunicationError: another program listens there, or it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        _remove_stale(path)
        listener.bind(path)
        listener.listen(MAX_AT_ONCE)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise CommunicationError(f"cannot make the control socket {path}: {error.strerror or error}") from error
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _remove_stale(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise CommunicationError(f"cannot make the control socket {path}: there is something else; remove it")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
                return
        raise CommunicationError(f"another dispatcher listens on the control socket {path}; give each its own")


async def serve_control(listener: socket.socket, handler: Handler) -> None:
    """Answer requests until cancelled; one connection may send several, one after the other. Once the listener is
    closed no more connections are taken; those that are there go on."""
    room = trio.CapacityLimiter(MAX_AT_ONCE)
    wrapped = trio.socket.from_stdlib_socket(listener)
    async with trio.open_nursery() as nursery:
        while True:
            permit = object()
            await room.acquire_on_behalf_of(permit)
            try:
                sock, _ = await wrapped.accept()
            except (trio.ClosedResourceError, OSError):
                if wrapped.fileno() < 0:
                    return
                raise
            nursery.start_soon(_serve_one, trio.SocketStream(sock), handler, room, permit)


async def _serve_one(stream: trio.SocketStream, handler: Handler, room: trio.CapacityLimiter, permit: object) -> None:
    try:
        async with stream:
            await _converse(stream, handler)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        pass  # whoever asked has left
    except Exception:
        logging.getLogger("pyroxfer.dispatcher").exception("a command failed")
    finally:
        room.release_on_behalf_of(permit)


async def _converse(stream: trio.SocketStream, handler: Handler) -> None:
    buffer = bytearray()
    while (line := await _line(stream, buffer)) is not None:
        try:
            request = _read(line)
            note(logging.INFO, "command", request=line.decode("utf-8", "backslashreplace"))
            await _answer(stream, handler(request))
            await _send(stream, {"end": True})
        except CommandError as error:
            await _send(stream, {"end": True, "error": str(error)})


async def _answer(stream: trio.SocketStream, answers: AsyncGenerator[Answer, None]) -> None:
    """Send answers as they come. Who asked and leaves ends it, also while nothing comes."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_for_end, stream, nursery.cancel_scope)
        try:
            async with aclosing(answers):
                async for answer in answers:
                    await _send(stream, answer)
        except Exception as error:
            failure = error  # as it is, not in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if stream.socket.fileno() < 0:
        raise trio.ClosedResourceError


async def _watch_for_end(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(stream.socket.fileno())
    with contextlib.suppress(BlockingIOError, OSError):
        if not await stream.socket.recv(1, socket.MSG_PEEK):
            stream.socket.close()
            scope.cancel()


async def _line(stream: trio.SocketStream, buffer: bytearray) -> bytes | None:
    """The next line; None at the end, or where it is too long or comes too slowly."""
    with trio.move_on_after(REQUEST_S):
        while (end := buffer.find(b"\n")) < 0:
            if len(buffer) > MAX_REQUEST or not (data := await stream.receive_some(MAX_REQUEST)):
                return None
            buffer += data
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        return line
    return None


def _read(line: bytes) -> Request:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise CommandError("a request is one JSON object on a line") from None
    if not isinstance(request, dict) or not isinstance(request.get("do"), str):
        raise CommandError('a request is a JSON object with the name of a command in "do"')
    return request


async def _send(stream: trio.SocketStream, answer: Answer) -> None:
    with trio.fail_after(REQUEST_S):
        await stream.send_all(json.dumps(answer).encode() + b"\n")


async def ask(path: str, request: Request) -> AsyncGenerator[Answer, None]:
    """As `ask_control`, without blocking. Close what comes back."""
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise CommunicationError(f"no dispatcher answers on {path}: {error.strerror or error}") from error
    buffer = bytearray()
    async with stream:
        try:
            await stream.send_all(json.dumps(request).encode() + b"\n")
            while not (answer := json.loads(await next_line(stream, buffer))).get("end"):
                yield answer
        except trio.BrokenResourceError as error:
            raise CommunicationError(f"the dispatcher on {path} ended before it answered") from error
    if "error" in answer:
        raise CommandError(answer["error"])


def ask_control(path: str, request: Request) -> Iterator[Answer]:
    """The answers to a request, from the outside; blocks.

    Raises:
        CommandError: it was refused.
        CommunicationError: nobody is there, or it left in the middle.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "error" in answer:
                        raise CommandError(answer["error"])
                    if answer.get("end"):
                        return
                    yield answer
        except OSError as error:
            text = f"no dispatcher answers on {path}: {error.strerror or error}; is it running with this file?"
            raise CommunicationError(text) from error
    raise CommunicationError(f"the dispatcher on {path} ended before it answered")
