"""Many connections to one object, in the words of a stock Pyro5 client.

Usage: connections_client.py URI CONNECTIONS SECONDS [CA_FILE]

Opens the connections, one call each; prints `held` and waits for a line, so that the server can be weighed. Then
calls for SECONDS, 64 connections at a time and each of them in its turn, and prints how many calls that were.
"""

import json
import resource
import select
import socket
import ssl
import sys
import time
from collections import deque

from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.message import Message, MessageType

uri, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
context = ssl.create_default_context(cafile=sys.argv[4]) if len(sys.argv) > 4 else None
object_id, _, place = uri.removeprefix("PYRO:").partition("@")
host, _, port = place.rpartition(":")
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 2 * count + 100, hard))
AT_A_TIME = 64
CODEC = codec_for(502)
HEAD = b"# serpent utf-8 python3.2\n"
CONNECT = CODEC.encode(
    Message(MessageType.CONNECT, 0, "serpent", 0, HEAD + f"{{'handshake':'hello','object':'{object_id}'}}".encode())
)
CALL = CODEC.encode(Message(MessageType.INVOKE, 1, "serpent", 0, HEAD + f"('{object_id}','add',(1,2),{{}})".encode()))


def answer_to(sock, request):
    decoder = Decoder(CODEC)
    sock.sendall(request)
    while (answer := decoder.next_event()) is None:
        data = sock.recv(65536)
        if not data:
            sys.exit("the server closed a connection")
        decoder.feed(data)
    return answer


def opened():
    sock = socket.create_connection((host, int(port)), 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        sock = context.wrap_socket(sock, server_hostname=host)
    assert answer_to(sock, CONNECT).type is MessageType.CONNECTOK
    answer = answer_to(sock, CALL)
    assert answer.type is MessageType.RESULT, answer
    return sock


def call_for(seconds):
    """Each answer is as long as the first one: two calls alike have answers alike."""
    socks[0].sendall(CALL)
    length = len(socks[0].recv(65536))
    poll = select.epoll()
    by_fd = {sock.fileno(): sock for sock in socks}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    idle, done = deque(socks), 0
    for _ in range(min(AT_A_TIME, count)):
        idle.popleft().sendall(CALL)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for fd, _ in poll.poll():
            sock = by_fd[fd]
            assert len(sock.recv(65536)) == length
            done += 1
            idle.append(sock)
            idle.popleft().sendall(CALL)
    return done, time.perf_counter() - begin


socks = [opened() for _ in range(count)]
print("held", flush=True)
sys.stdin.readline()
done, took = call_for(seconds) if seconds else (0, 0.0)
print(json.dumps({"calls": done, "seconds": took, "cpu_s": time.process_time()}))
