"""One file in, checked values or every problem out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields

from pyroxfer_core.uri import Uri
from pyroxfer_dispatcher.config import (
    DEFAULT_METHODS,
    ConfigError,
    ServiceConfig,
    _duplicates,
    _fields_of,
    load_config,
    parse_config,
)

GOOD = """
listen = "localhost:0"
object = "example.blobdispatcher"
methods = ["process_blob"]
oneway = ["notify"]
register = "example.blobdispatcher"
nameserver = "localhost:9090"
connect_timeout = 2

[[services]]
name = "orders"
match = "orders.*"
method = "work"
methods = ["notify"]

[[services.backends]]
name = "a"
uri = "PYRO:worker@localhost:4001"
max_in_flight = 4

[[services.backends]]
name = "b"
uri = "PYRONAME:worker@localhost:9090"

[[services]]
name = "mail"
backends = [{name = "a", uri = "PYRO:mailer@[::1]:4001"}]
"""

MINIMAL = '[[services]]\nname = "s"\n[[services.backends]]\nname = "a"\nuri = "PYRO:x@localhost:1"\n'


def test_a_file_becomes_values(tmp_path: Path) -> None:
    path = tmp_path / "dispatcher.toml"
    path.write_text(GOOD)
    config = load_config(path)
    orders, mail = config.services
    assert config.all_methods == ("notify", "process_blob")
    assert config.connect_timeout == 2.0
    assert (orders.pattern, orders.method, orders.policy) == ("orders.*", "work", "least-of-two")
    assert [backend.max_in_flight for backend in orders.backends] == [4, None]
    assert orders.backends[1].uri == Uri("PYRONAME:worker@localhost:9090")
    assert mail.pattern == "mail"


def test_what_tables_may_say_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload of a thousand services holds up no call for half a second: msgspec's answer is slow, and the same."""
    asked: list[object] = []

    def counted(kind: type[msgspec.Struct]) -> object:
        asked.append(kind)
        return fields(kind)

    monkeypatch.setattr(msgspec.structs, "fields", counted)
    _fields_of.cache_clear()
    parse_config(GOOD)
    assert asked.count(ServiceConfig) == 1


def test_a_name_that_is_taken_is_compared_with_the_first_that_has_it() -> None:
    """Without looking through all before it: the text is not compared more often than it is there."""

    class Text(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Text.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names: list[str] = [Text(f"s{number}") for number in range(1000)]
    problems = list(_duplicates("services", "name", names * 2))
    assert problems[0] == "services[1000].name: 's0' is taken by services[0]"
    assert len(problems) == 1000
    assert Text.compared < 10_000


def test_defaults_are_safe() -> None:
    config = parse_config(MINIMAL)
    assert config.listen == "localhost:9095"
    assert not config.insecure
    assert config.all_methods == tuple(sorted(DEFAULT_METHODS))


HEAD = MINIMAL.partition("[[services.backends]]")[0]

BAD: list[tuple[str, list[str]]] = [
    ("lisen = 'x:1'\n" + MINIMAL, ["lisen: unknown key; the nearest known one is 'listen'"]),
    (MINIMAL + "url = 'x'\n", ["services[0].backends[0].url: unknown key; the nearest known one is 'uri'"]),
    (
        HEAD + "mach = 'x'\n[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\n",
        ["services[0].mach: unknown key; the nearest known one is 'match'"],
    ),
    ("listen = 5\n" + MINIMAL, ["listen: Expected `str`, got `int`"]),
    ("listen = ''\n" + MINIMAL, ["listen: Expected `str` of length >= 1"]),
    ("listen = 'localhost'\n" + MINIMAL, ["listen: invalid port in uri: there is none"]),
    ("listen = 'localhost:70000'\n" + MINIMAL, ["listen: invalid port in uri, port=70000: ports are 0 to 65535"]),
    ("nameserver = 'localhost:x'\n" + MINIMAL, ["nameserver: invalid port in uri, port='x'"]),
    ("listen = './u:/tmp/s'\n" + MINIMAL, ["listen: expected HOST:PORT, not './u:/tmp/s'"]),
    (
        "listen = '0.0.0.0:1'\n" + MINIMAL,
        [
            "listen: 0.0.0.0 is beyond this machine and nothing here authenticates or encrypts;"
            " listen on localhost, or say insecure = true, or give tls_cert, and token_file or tls_ca"
        ],
    ),
    (
        "listen = ':1'\n" + MINIMAL,
        [
            "listen: every address is beyond this machine and nothing here authenticates or encrypts;"
            " listen on localhost, or say insecure = true, or give tls_cert, and token_file or tls_ca"
        ],
    ),
    (
        HEAD + "fair_by = 'hots'\nlisteners = 3\n[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\n",
        [
            "services[0].listeners: 3 is not known; choose one of: none, one, all",
            "services[0].fair_by: 'hots' is not known; choose one of: host, connection",
        ],
    ),
    ("object = 'a b'\n" + MINIMAL, ["object: 'a b' has blanks or an @"]),
    ("methods = ['ok', '_no']\n" + MINIMAL, ["methods[1]: '_no' is not the name of a public method"]),
    ("methods = ['ok', 5]\n" + MINIMAL, ["methods: Expected `str`, got `int` at [1]"]),
    ("methods = []\n" + MINIMAL, ["methods: at least one is needed, or proxies refuse the object"]),
    ("oneway = ['nix']\n" + MINIMAL, ["oneway[0]: 'nix' is not one of the methods"]),
    ("connect_timeout = 0\n" + MINIMAL, ["connect_timeout: Expected `float` > 0.0"]),
    ("insecure = 'yes'\n" + MINIMAL, ["insecure: Expected `bool`, got `str`"]),
    ("", ["services: missing"]),
    ("services = []", ["services: at least one is needed"]),
    ("services = 5", ["services: expected an array of tables"]),
    ("services = [5]", ["services[0]: expected a table"]),
    (HEAD, ["services[0].backends: at least one is needed, or a section in discover"]),
    (HEAD + "backends = []\n", ["services[0].backends: at least one is needed, or a section in discover"]),
    (
        HEAD + "[[services.backends]]\nname='a'\nuri='nonsense'\n",
        [
            "services[0].backends[0].uri: invalid uri: 'nonsense';"
            " expected something like PYRO:object@host:port or PYRONAME:name"
        ],
    ),
    (HEAD + "[[services.backends]]\nname='a'\nuri=5\n", ["services[0].backends[0].uri: Expected `str`"]),
    (
        HEAD + "[[services.backends]]\nname='a'\nuri='PYROMETA:x,y'\n",
        ["services[0].backends[0].uri: PYROMETA names a set; give PYRO or PYRONAME"],
    ),
    (
        "listen = 'localhost:1'\nobject = 'x'\n" + MINIMAL,
        ["services[0].backends[0].uri: this is the dispatcher itself"],
    ),
    (MINIMAL + "max_in_flight = 0\n", ["services[0].backends[0].max_in_flight: Expected `int` >= 1"]),
    (
        HEAD + "policy = 'random'\n[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\n",
        ["services[0].policy: 'random' is not known; choose one of: least-of-two, round-robin, hash"],
    ),
    (
        HEAD + "eject_for = 60\neject_at_most = 50\n[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\n",
        ["services[0].eject_at_most: 50 s is shorter than eject_for, 60 s"],
    ),
    (
        HEAD + "objects = ['a', 'a', 'pyroxfer.dispatcher']\n[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\n",
        [
            "services[0].objects[1]: 'a' is taken by services[0].objects[0]",
            "services[0].objects[2]: 'pyroxfer.dispatcher' is the dispatcher's own object",
        ],
    ),
    (
        HEAD
        + "prefer = ['eu', 'us']\n[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\ntags = ['us']\nweight = 0\n",
        [
            "services[0].backends[0].weight: Expected `float` > 0.0",
        ],
    ),
    (
        HEAD + "prefer = ['eu', 'us']\n[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\ntags = ['us']\n",
        ["services[0].prefer[0]: no backend of the service has the tag 'eu'"],
    ),
    (
        "default = 'sun'\n" + HEAD + "[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\n",
        ["default: no service 'sun'; the nearest one is 's'"],
    ),
    (
        HEAD + "method = '__init__'\n[[services.backends]]\nname='a'\nuri='PYRO:x@h:1'\n",
        ["services[0].method: '__init__' is not the name of a public method"],
    ),
    (
        MINIMAL + "[[services.backends]]\nname='a'\nuri='PYRO:x@localhost:1'\n",
        [
            "services[0].backends[1].name: 'a' is taken by services[0].backends[0]",
            "services[0].backends[1].uri: 'PYRO:x@localhost:1' is taken by services[0].backends[0]",
        ],
    ),
    (
        MINIMAL + MINIMAL,
        ["services[1].name: 's' is taken by services[0]", "services[1].match: 's' is taken by services[0]"],
    ),
]


@pytest.mark.parametrize(("text", "problems"), BAD)
def test_every_problem_is_named_by_its_path(text: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert list(caught.value.problems) == problems


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("listen = 1\nbogus = 2\n[[services]]\nname = ''\nbackends = 3\n")
    places = [line.partition(":")[0] for line in caught.value.problems]
    assert places == ["bogus", "services[0].name", "services[0].backends", "listen"]


@pytest.mark.parametrize(
    "text", ["insecure = true\nlisten = '0.0.0.0:1'\n", "listen = '127.0.0.5:1'\n", "listen = '[::1]:1'\n"]
)
def test_listening_is_allowed_on_loopback_or_when_said_aloud(text: str) -> None:
    assert parse_config(text + MINIMAL).location.port == 1


def test_a_caller_can_say_insecure_too() -> None:
    assert parse_config("listen = '0.0.0.0:1'\n" + MINIMAL, insecure=True).insecure


def test_what_is_not_toml_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"not TOML: .*line 2"):
        parse_config("a = 1\nb = \n")


def test_what_is_nested_without_an_end_is_a_mistake_like_any_other() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_config("a = " + 5000 * "[")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 0"):
        load_config(path)


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "none.toml")


TREES = st.recursive(
    st.one_of(st.none(), st.integers(), st.booleans(), st.text("ab*:@", max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["services", "backends", "name", "uri", "listen", "match", "x"]), inner),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["services", "listen", "object", "methods", "x"]), TREES))
def test_any_tree_gives_values_or_problems(tree: dict[str, object]) -> None:
    """No other error comes out, whatever the shape."""
    try:
        parse_config(_toml(tree))
    except ConfigError as error:
        assert error.problems


def _toml(tree: dict[str, object]) -> str:
    return "\n".join(f"{key} = {_literal(value)}" for key, value in tree.items())


def _literal(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else f"'{value}'"
