"""Stock Pyro5 sending a file in the four ways of its file transfer example. Usage: pyro5_files_server.py FOLDER"""

import os
import socket
import sys
import threading
import uuid
from pathlib import Path

import Pyro5.api

FOLDER = Path(sys.argv[1])
ITERATOR_CHUNK = 105_000
ANNOTATION_CHUNK = 500_000


@Pyro5.api.expose
class Files:
    def regular(self, name, offset, size):
        """A part of the file as the result of a call."""
        with open(FOLDER / name, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def iterator(self, name, size):
        """The file as an item stream."""
        with open(FOLDER / name, "rb") as file:
            while size > 0 and (chunk := file.read(min(ITERATOR_CHUNK, size))):
                size -= len(chunk)
                yield chunk

    def annotation(self, name, size):
        """The file in the annotations of an item stream; the items are the lengths."""
        with open(FOLDER / name, "rb") as file:
            while size > 0 and (chunk := file.read(min(ANNOTATION_CHUNK, size))):
                size -= len(chunk)
                Pyro5.api.current_context.response_annotations = {"FDAT": chunk}
                yield len(chunk)

    def raw(self, name):
        """Prepare a transfer over a socket of its own: the id to send there, and its port."""
        ticket = uuid.uuid4().hex
        tickets[ticket] = FOLDER / name
        return ticket, listener.getsockname()[1]


def serve_raw():
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=send_raw, args=(connection,), daemon=True).start()


def send_raw(connection):
    with connection:
        path = tickets.pop(connection.recv(32, socket.MSG_WAITALL).decode())
        with open(path, "rb") as file:
            offset, size = 0, os.fstat(file.fileno()).st_size
            while offset < size:
                offset += os.sendfile(connection.fileno(), file.fileno(), offset, size - offset)


tickets = {}
listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve_raw, daemon=True).start()
daemon = Pyro5.api.Daemon(host="127.0.0.1")
print(daemon.register(Files, "files"), flush=True)
daemon.requestLoop()
