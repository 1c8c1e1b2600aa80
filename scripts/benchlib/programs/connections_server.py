"""One object with one small method, for many connections.

Usage: connections_server.py ours|tls|thread|multiplex FOLDER

`thread` and `multiplex` are stock Pyro5's server types. `tls` puts the authority that signed its certificate into
FOLDER/ca.pem. Thousands of open files are allowed, as far as the system lets them be.
"""

import resource
import sys
from pathlib import Path

kind = sys.argv[1]
MOST = 20_000
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 2 * MOST, hard))


def serve_stock():
    from Pyro5 import api

    api.config.SERVERTYPE = kind
    api.config.THREADPOOL_SIZE = 1100

    @api.expose
    @api.behavior(instance_mode="single")
    class Adder:
        def add(self, a, b):
            return a + b

    daemon = api.Daemon(host="127.0.0.1")
    print(daemon.register(Adder, "adder"), flush=True)
    daemon.requestLoop()


def tls_context():
    import trustme

    from pyroxfer_core import tls_server_context

    folder, authority = Path(sys.argv[2]), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return tls_server_context(folder / "server.pem")


def serve_ours():
    import trio

    from pyroxfer_core import Daemon, Settings, behavior, expose

    @expose
    @behavior(instance_mode="single")
    class Adder:
        async def add(self, a, b):
            return a + b

    async def main():
        settings = Settings(max_connections=MOST, ssl_server_context=tls_context() if kind == "tls" else None)
        async with Daemon(host="127.0.0.1", settings=settings) as daemon:
            print(daemon.register(Adder, "adder"), flush=True)
            await trio.sleep_forever()

    trio.run(main)


serve_ours() if kind in ("ours", "tls") else serve_stock()
