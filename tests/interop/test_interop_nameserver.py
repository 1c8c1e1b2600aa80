"""The name server with real Pyro4 and Pyro5: their programs and tools with ours, ours with theirs, and the files."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matrix
import pytest
import trio
from peers import stock_python

from pyroxfer_core import Proxy, Settings, Uri, locate_ns, resolve
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver.broadcast import find_by_broadcast
from pyroxfer_core.nameserver.storage import Address, Entry, Query
from pyroxfer_core.nameserver.storage.sqlite import SqliteStorage

pytestmark = pytest.mark.interop

LIBRARIES = ("pyro4", "pyro5")
WITHIN_S = 60
OUR_NS = (sys.executable, "-c", "from pyroxfer_core.cli.ns import ns; ns()")
OUR_NSC = (sys.executable, "-c", "from pyroxfer_core.cli.nsc import nsc; nsc()")
OUR_DOCTOR = (sys.executable, "-c", "from pyroxfer_core.cli.doctor import doctor; doctor()")
NAME_SERVER = "Pyro.NameServer"
BROADCAST = ("--bchost", "127.0.0.1", "--bcport", "0")


def stock_tool(library: str, tool: str) -> tuple[str, ...]:
    return (str(Path(stock_python()).parent / f"{library}-{tool}"),)


def run(*command: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=WITHIN_S, check=False)


def stock(program: str, *args: str) -> Any:
    """Run a program text on the stock interpreter; what it prints is JSON."""
    done = run(stock_python(), "-c", program, *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class NameServers:
    """Name servers of any make, each on a free port of the loopback interface."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

        self.broadcast_port = ""
        """UDP port of the last one."""

    def __call__(self, *command: str) -> str:
        """Start one; its port, or the path of its unix socket."""
        unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}  # the stock tool does not flush what it says
        process = subprocess.Popen([*command, "-p", "0"], stdout=subprocess.PIPE, text=True, env=unbuffered)
        self._processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"Broadcast server running on .*:(\d+)$", line):
                self.broadcast_port = found[1]
            if found := re.match(r"URI = PYRO:Pyro\.NameServer@.*:(.+)$", line):
                return found[1]
        raise AssertionError(f"{command} ended with {process.wait()}")

    def kill_all(self) -> None:
        """As `kill -9` does."""
        while self._processes:
            process = self._processes.pop()
            process.kill()
            process.communicate()


@pytest.fixture
def name_server() -> Iterator[NameServers]:
    """``name_server(*command)`` starts a name server and tells its port."""
    servers = NameServers()
    yield servers
    servers.kill_all()


def our_server(name_server: NameServers) -> str:
    return name_server(*OUR_NS, "-s", "memory")


STOCK_CLIENT = """
import json, sys
library, port = sys.argv[1], int(sys.argv[2])
if library == "pyro5":
    from Pyro5.api import Proxy, URI, locate_ns
    from Pyro5 import errors, core
    resolve = core.resolve
else:
    from Pyro4 import Proxy, URI, locateNS as locate_ns, errors
    from Pyro4.naming import resolve

def failing(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]

def tags(collection):
    return [type(collection).__name__, sorted(collection)]

ns = locate_ns("localhost", port)
seen = {"ping": ns.ping(), "count": ns.count()}
ns.register("test.one", "PYRO:one@localhost:5555", metadata={"x", "y"})
ns.register("test.two", URI("PYRO:two@localhost:5556"))
ns.register("other", "PYRONAME:test.one", safe=True)
seen["safe"] = failing(ns.register, "other", "PYRO:z@localhost:1", safe=True)
seen["not a uri"] = failing(ns.register, "z", "nonsense")
seen["wrong type"] = failing(ns.register, "z", 12)
seen["text as metadata"] = failing(ns.register, "z", "PYRO:z@localhost:1", metadata="text")
seen["wildcard"] = failing(ns.register, "z", "PYRO:z@0.0.0.0:1")
one = ns.lookup("test.one")
seen["lookup"] = [type(one).__module__, str(one)]
uri, metadata = ns.lookup("test.one", return_metadata=True)
seen["lookup with metadata"] = [str(uri), tags(metadata)]
seen["no metadata"] = len(ns.lookup("test.two", return_metadata=True)[1])
seen["unknown"] = failing(ns.lookup, "nothing")
seen["list"] = ns.list()
seen["prefix"] = ns.list(prefix="test.")
seen["regex"] = ns.list(regex="(test|nothing).o+n+e")
seen["bad regex"] = failing(ns.list, regex="(")
seen["two filters"] = failing(ns.list, prefix="a", regex="b")
listed = ns.list(prefix="test.one", return_metadata=True)
seen["listed metadata"] = [listed["test.one"][0], tags(listed["test.one"][1])]
ns.set_metadata("test.two", ["y", "z"])
seen["set unknown"] = failing(ns.set_metadata, "nothing", ["a"])
if library == "pyro5":
    seen["all"] = ns.yplookup(meta_all=["x", "y"], return_metadata=False)
    seen["any"] = ns.yplookup(None, {"x", "z"}, False)
    seen["no tags"] = ns.yplookup()
    seen["both"] = failing(ns.yplookup, ["x"], ["y"])
    seen["positional"] = sorted(ns.list("test.one", None, True))
else:
    seen["all"] = ns.list(metadata_all=["x", "y"])
    seen["any"] = ns.list(metadata_any={"x", "z"})
seen["resolve"] = str(resolve("PYRONAME:test.one@localhost:%d" % port))
seen["resolve tags"] = str(resolve("PYROMETA:x,y@localhost:%d" % port))
with Proxy("PYRONAME:Pyro.NameServer@localhost:%d" % port) as again:
    seen["through its name"] = again.lookup("test.two").object
seen["remove"] = [ns.remove("test.one"), ns.remove("test.one"), ns.remove(prefix="te"), ns.remove("Pyro.NameServer")]
seen["remove all"] = ns.remove(regex=".*")
seen["left"] = ns.count()
print(json.dumps(seen))
"""


@matrix.cell("name server", "stock program, our name server")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stock_program_uses_our_name_server(library: str, name_server: NameServers) -> None:
    port = our_server(name_server)
    kind = {"pyro4": "list", "pyro5": "set"}[library]
    seen = stock(STOCK_CLIENT, library, port)
    wildcard = seen.pop("wildcard")
    assert wildcard[0] == "NamingError"
    assert "wildcard" in wildcard[1]
    for pyro5_only, expected in (("no tags", {}), ("positional", ["test.one"])):
        assert seen.pop(pyro5_only, expected) == expected
    assert seen.pop("both", ["ValueError"])[0] == "ValueError"
    assert seen.pop("not a uri")[0] == "PyroError"
    assert seen.pop("wrong type")[0] == "TypeError"
    assert seen.pop("text as metadata")[0] == "TypeError"
    assert seen.pop("bad regex")[1].startswith("invalid regex: ")
    one, two = "PYRO:one@localhost:5555", "PYRO:two@localhost:5556"
    own = f"PYRO:{NAME_SERVER}@localhost:{port}"
    assert seen == {
        "ping": None,
        "count": 1,
        "safe": ["NamingError", "name already registered: other"],
        "lookup": [{"pyro4": "Pyro4.core", "pyro5": "Pyro5.core"}[library], one],
        "lookup with metadata": [one, [kind, ["x", "y"]]],
        "no metadata": 0,
        "unknown": ["NamingError", "unknown name: nothing"],
        "list": {"test.one": one, "test.two": two, "other": "PYRONAME:test.one", NAME_SERVER: own},
        "prefix": {"test.one": one, "test.two": two},
        "regex": {"test.one": one},
        "two filters": ["ValueError", "you can only filter on one thing at a time"],
        "listed metadata": [one, [kind, ["x", "y"]]],
        "set unknown": ["NamingError", "unknown name: nothing"],
        "all": {"test.one": one},
        "any": {"test.one": one, "test.two": two},
        "resolve": one,
        "resolve tags": one,
        "through its name": "two",
        "remove": [1, 0, 1, 0],
        "remove all": 1,
        "left": 1,
    }


@matrix.cell("name server", "stock nsc, our name server")
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_stock_tool_uses_our_name_server(library: str, name_server: NameServers) -> None:
    port = our_server(name_server)

    def nsc(*args: str, answer: str | None = None) -> str:
        done = run(*stock_tool(library, "nsc"), "-n", "localhost", "-p", port, *args, answer=answer)
        assert done.returncode == 0, done.stderr
        return done.stdout

    search = {"pyro4": ("listmeta_all", "listmeta_any"), "pyro5": ("yplookup_all", "yplookup_any")}[library]
    assert nsc("ping") == "Name server ping ok.\n"
    assert nsc("register", "test.one", "PYRO:one@localhost:5555") == "Registered test.one\n"
    assert nsc("setmeta", "test.one", "x") == "Metadata updated\n"
    shown = {"pyro4": "['x']", "pyro5": "{'x'}"}[library]
    entry = f"test.one --> PYRO:one@localhost:5555\n    metadata: {shown}\n"
    assert nsc("lookup", "test.one") == f"PYRO:one@localhost:5555\nmetadata: {shown}\n"
    assert entry in nsc("list")
    assert entry in nsc("list", "test.")
    assert entry in nsc("listmatching", "test.+n.")
    assert entry in nsc(search[0], "x")
    assert entry in nsc(search[1], "x", "y")
    assert entry not in nsc(search[0], "x", "y")
    assert nsc("remove", "test.one") == "Removed test.one\n"
    assert nsc("remove", "test.one") == "Nothing removed\n"
    assert nsc("removematching", ".*", answer="y\n").endswith("0 items removed.\n")


@matrix.cell("name server", "stock nsc, our name server on a unix socket")
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_stock_tool_reaches_us_on_a_unix_socket(library: str, name_server: NameServers, tmp_path: Path) -> None:
    path = str(tmp_path / "ns")
    assert name_server(*OUR_NS, "-s", "memory", "-u", path) == path
    done = run(*stock_tool(library, "nsc"), "-u", path, "lookup", NAME_SERVER)
    assert done.stdout.startswith(f"PYRO:{NAME_SERVER}@./u:{path}\nmetadata: ")


STOCK_BROADCAST = """
import sys
library, port = sys.argv[1], int(sys.argv[2])
if library == "pyro5":
    from Pyro5.api import locate_ns, config
else:
    from Pyro4 import locateNS as locate_ns, config
config.BROADCAST_ADDRS = ["127.0.0.1"] if library == "pyro5" else "127.0.0.1"
ns = locate_ns(port=port)  # nothing listens there on TCP
ns.ping()
print('"%s"' % ns._pyroUri.location)
"""


@matrix.cell("name server", "stock program finds ours by broadcast")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stock_program_finds_us_by_broadcast(library: str, name_server: NameServers) -> None:
    port = name_server(*OUR_NS, "-s", "memory", "-n", "0.0.0.0", "--insecure", *BROADCAST)
    assert stock(STOCK_BROADCAST, library, name_server.broadcast_port) == f"127.0.0.1:{port}"


@matrix.cell("name server", "we find the stock one by broadcast")
@pytest.mark.parametrize("library", LIBRARIES)
async def test_we_find_their_name_server_by_broadcast(library: str, name_server: NameServers) -> None:
    start = functools.partial(name_server, *stock_tool(library, "ns"), "-n", "0.0.0.0", *BROADCAST)
    port = await trio.to_thread.run_sync(start)
    found = await find_by_broadcast(int(name_server.broadcast_port), ["127.0.0.1"])
    assert found == Uri(f"PYRO:{NAME_SERVER}@127.0.0.1:{port}")


@matrix.cell("name server", "our proxy and resolve, stock name server")
@pytest.mark.parametrize("library", LIBRARIES)
async def test_we_use_their_name_server(library: str, name_server: NameServers) -> None:
    """Our proxy, our `resolve`, and a proxy with a PYRONAME URI."""
    port = await trio.to_thread.run_sync(name_server, *stock_tool(library, "ns"))
    one = Uri("PYRO:one@localhost:5555")
    async with await locate_ns("localhost", int(port)) as ns:
        assert await ns.ping() is None
        await ns.register("test.one", str(one), metadata=["x", "y"])
        await ns.register("test.two", Uri("PYRO:two@localhost:5556"))
        assert await ns.lookup("test.one") == one
        uri, tags = await ns.lookup("test.one", return_metadata=True)
        assert (uri, sorted(tags)) == (one, ["x", "y"])
        assert await ns.list(prefix="test.") == {"test.one": str(one), "test.two": "PYRO:two@localhost:5556"}
        with pytest.raises(NamingError, match="unknown name: nothing"):
            await ns.lookup("nothing")
    assert await resolve(f"PYRONAME:test.one@localhost:{port}") == one
    assert await resolve(f"PYROMETA:x,y@localhost:{port}") == one
    with pytest.raises(NamingError, match="unknown name: nothing"):
        await resolve(f"PYRONAME:nothing@localhost:{port}")
    with pytest.raises(NamingError, match="no registrations available"):
        await resolve(f"PYROMETA:x,nothing@localhost:{port}")
    settings = Settings(ns_port=int(port))
    async with Proxy(f"PYRONAME:{NAME_SERVER}", settings=settings) as named:
        assert await named.count() == 3


@matrix.cell("name server", "our nsc, stock name server")
@pytest.mark.parametrize("library", LIBRARIES)
def test_our_tool_uses_their_name_server(library: str, name_server: NameServers) -> None:
    port = name_server(*stock_tool(library, "ns"))

    def nsc(*args: str, code: int = 0) -> str:
        done = run(*OUR_NSC, "-n", "localhost", "-p", port, *args)
        assert done.returncode == code, done.stderr
        return done.stdout

    assert nsc("ping") == "Name server ping ok.\n"
    assert nsc("register", "test.one", "PYRO:one@localhost:5555") == "Registered test.one\n"
    assert nsc("setmeta", "test.one", "y", "x") == "Metadata updated\n"
    entry = "test.one --> PYRO:one@localhost:5555\n    metadata: ['x', 'y']\n"
    for command in (["list"], ["listmatching", "test"], ["yplookup_all", "x", "y"], ["listmeta_any", "x"]):
        assert entry in nsc(*command)
    assert nsc("lookup", "test.one") == "PYRO:one@localhost:5555\nmetadata: ['x', 'y']\n"
    nsc("lookup", "nothing", code=3)
    nsc("register", "test.one", "PYRO:one@localhost:5555", code=9)
    assert nsc("remove", "test.one") == "Removed test.one\n"


STOCK_STORAGE = """
import json, sys
library, what, path = sys.argv[1:]
if library == "pyro5":
    from Pyro5.nameserver import SqlStorage
else:
    from Pyro4.naming_storage import SqlStorage
storage = SqlStorage(path)
if what == "write":
    storage["plain"] = "PYRO:plain@localhost:1", None
    storage["tagged"] = "PYRO:tagged@localhost:2", {"x", "y"}
entries = storage.everything(return_metadata=True)
print(json.dumps({name: [uri, sorted(tags)] for name, (uri, tags) in entries.items()}))
"""


@matrix.cell("name server", "one sqlite file for both")
@pytest.mark.parametrize("library", LIBRARIES)
async def test_sqlite_files_go_both_ways(library: str, tmp_path: Path) -> None:
    """We open their file, change it, and they read every entry, also while we have it open."""
    path = str(tmp_path / "names.sqlite")
    await trio.to_thread.run_sync(stock, STOCK_STORAGE, library, "write", path)
    storage = SqliteStorage(path)
    assert await storage.select(Query()) == {
        "plain": Entry.single("PYRO:plain@localhost:1"),
        "tagged": Entry.single("PYRO:tagged@localhost:2", frozenset({"x", "y"})),
    }
    await storage.put("plain", Entry.single("PYRO:changed@localhost:3", frozenset({"z"})))
    await storage.put("ours", Entry.single("PYRO:ours@localhost:4"))
    await storage.remove(["tagged"])
    expected = {"plain": ["PYRO:changed@localhost:3", ["z"]], "ours": ["PYRO:ours@localhost:4", []]}
    assert await trio.to_thread.run_sync(stock, STOCK_STORAGE, library, "read", path) == expected
    await trio.to_thread.run_sync(stock, STOCK_STORAGE, library, "write", path)
    assert (await storage.get("tagged")) == Entry.single("PYRO:tagged@localhost:2", frozenset({"x", "y"}))
    await storage.aclose()
    assert len(await trio.to_thread.run_sync(stock, STOCK_STORAGE, library, "read", path)) == 3


@matrix.cell("name server", "a file with addresses and leases in the stock one")
@pytest.mark.parametrize("library", LIBRARIES)
async def test_what_pyro_has_no_column_for_does_not_disturb_it(library: str, tmp_path: Path) -> None:
    """Of an entry with several addresses and a lease it sees the first; when it changes the entry, that counts."""
    path = str(tmp_path / "names.sqlite")
    first = Address("PYRO:first@localhost:1", frozenset({"a"}), frozenset({48}), "lease", 60.0)
    pool = Entry((first, Address("PYRO:second@localhost:2", frozenset({"b"}))))
    storage = SqliteStorage(path)
    await storage.put("tagged", pool)
    await storage.put("pool", pool)
    await storage.aclose()
    seen = await trio.to_thread.run_sync(stock, STOCK_STORAGE, library, "read", path)
    assert seen == {name: ["PYRO:first@localhost:1", ["a", "b"]] for name in ("tagged", "pool")}
    await trio.to_thread.run_sync(stock, STOCK_STORAGE, library, "write", path)
    storage = SqliteStorage(path)
    assert await storage.get("tagged") == Entry.single("PYRO:tagged@localhost:2", frozenset({"x", "y"}))
    assert await storage.get("pool") == pool
    await storage.aclose()


@matrix.cell("name server", "the stock one goes on with our file")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stock_name_server_goes_on_with_our_file(library: str, tmp_path: Path, name_server: NameServers) -> None:
    """Registered with our name server, ended by force; found in theirs, started on the same file."""
    storage = f"sql:{tmp_path / 'names.sqlite'}"
    port = name_server(*OUR_NS, "-s", storage)
    done = run(*OUR_NSC, "-n", "localhost", "-p", port, "register", "test.one", "PYRO:one@localhost:5555")
    assert done.returncode == 0, done.stderr
    name_server.kill_all()
    port = name_server(*stock_tool(library, "ns"), "-s", storage)
    done = run(*OUR_NSC, "-n", "localhost", "-p", port, "lookup", "test.one")
    assert done.stdout == "PYRO:one@localhost:5555\n"


@matrix.cell("name server", "our doctor looks at the stock one")
@pytest.mark.parametrize(("library", "protocol"), [("pyro4", "48 (Pyro4)"), ("pyro5", "502 (Pyro5)")])
def test_our_doctor_looks_at_their_name_server(library: str, protocol: str, name_server: NameServers) -> None:
    """It finds nothing wrong, and knows what is spoken there."""
    port = name_server(*stock_tool(library, "ns"))
    done = run(*OUR_DOCTOR, f"{NAME_SERVER}@localhost:{port}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok      protocol: it speaks {protocol}\n" in done.stdout
    assert "ok      object: Pyro.NameServer" in done.stdout
