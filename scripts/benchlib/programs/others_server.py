"""Other libraries serving add(a, b). Usage: others_server.py rpyc|grpc|zerorpc

Prints its address as PYRO:adder@HOST:PORT, as our servers do.
"""

import asyncio
import socket
import sys


def serve_rpyc():
    import rpyc
    from rpyc.utils.server import ThreadedServer

    class Adder(rpyc.Service):
        def exposed_add(self, a, b):
            return a + b

    server = ThreadedServer(Adder, hostname="127.0.0.1", port=0)
    announce(server.port)
    server.start()


def serve_grpc():
    import grpc
    import msgpack

    async def add(request, context):
        a, b = msgpack.unpackb(request)
        return msgpack.packb(a + b)

    async def main():
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(add)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Adder", {"Add": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        announce(port)
        await server.wait_for_termination()

    asyncio.run(main())


def serve_zerorpc():
    import zerorpc

    class Adder:
        def add(self, a, b):
            return a + b

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = zerorpc.Server(Adder())
    server.bind(f"tcp://127.0.0.1:{port}")
    announce(port)
    server.run()


def announce(port):
    print(f"PYRO:adder@127.0.0.1:{port}", flush=True)


{"rpyc": serve_rpyc, "grpc": serve_grpc, "zerorpc": serve_zerorpc}[sys.argv[1]]()
