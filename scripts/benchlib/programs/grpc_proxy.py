"""A generic proxy in grpc.aio: any method, bytes in and bytes out. Usage: grpc_proxy.py BACKEND-URI"""

import asyncio
import sys

import grpc

backend = sys.argv[1].rpartition("@")[2]


class Anything(grpc.GenericRpcHandler):
    def __init__(self, channel):
        self._channel = channel

    def service(self, details):
        call = self._channel.unary_unary(details.method)

        async def forward(request, context):
            return await call(request)

        return grpc.unary_unary_rpc_method_handler(forward)


async def main():
    async with grpc.aio.insecure_channel(backend) as channel:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Anything(channel),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"PYRO:adder@127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()


asyncio.run(main())
