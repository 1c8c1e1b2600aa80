"""The same calls on the stock libraries' name server objects and on ours: the same results and errors."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import matrix
import pytest
import trio
from peers import stock_python

from pyroxfer_core.nameserver.service import NameServer
from pyroxfer_core.objects.context import CallContext, current_context_var
from pyroxfer_core.uri import Uri

pytestmark = pytest.mark.interop

PROTOCOLS = {"pyro4": 48, "pyro5": 502}
CALLS = 600

STOCK = """
import json, sys
library = sys.argv[1]
if library == "pyro5":
    from Pyro5.nameserver import NameServer
else:
    from Pyro4.naming import NameServer

def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset, list)):
        return sorted(value)
    return value if value is None or isinstance(value, (bool, int)) else str(value)

ns = NameServer()
ns.register("Pyro.NameServer", "PYRO:Pyro.NameServer@h:9090")
answers = []
for method, kwargs in json.load(sys.stdin):
    try:
        answers.append([plain(getattr(ns, method)(**kwargs)), None])
    except Exception as error:
        answers.append([None, [type(error).__name__, str(error)]])
print(json.dumps(answers))
"""

NAMES = ["", "a", "a.b", "A.b", "a%", "ab", "Pyro.NameServer", "ä"]
URIS: list[Any] = [
    "PYRO:a@h:1",
    "pyro:b@h:2",
    "PYRONAME:c",
    "PYROMETA:x",
    "PYRO:a@./u:/tmp/s",
    "nonsense",
    "PYRO:a",
    3,
]
TAGS: list[Any] = [None, [], ["x"], ["x", "y"], ["y", "z", "y"], "text", 7]
PATTERNS = [None, "", "a", "a.b", "b", "(", ".*", "[aA]\\.", "a$", "Pyro"]


def any_call(choose: random.Random, library: str) -> tuple[str, dict[str, Any]]:
    """One call with arguments that are right, empty, or wrong."""
    name, prefix, regex = choose.choice(NAMES), choose.choice([None, "", "a", "A", "a%"]), choose.choice(PATTERNS)
    tags, other_tags, flag = choose.choice(TAGS), choose.choice([None, None, *TAGS]), choose.random() < 0.5
    calls: list[tuple[str, dict[str, Any]]] = [
        ("count", {}),
        ("lookup", {"name": name, "return_metadata": flag}),
        ("register", {"name": name, "uri": choose.choice(URIS), "safe": flag, "metadata": tags}),
        ("register", {"name": name, "uri": choose.choice(URIS[:5]), "metadata": choose.choice(TAGS[:5])}),
        ("set_metadata", {"name": name, "metadata": tags}),
        ("remove", {"name": choose.choice([None, *NAMES]), "prefix": choose.choice([None, None, prefix])}),
        ("list", {"prefix": prefix, "regex": regex, "return_metadata": flag}),
        ("list", {"regex": regex}),
    ]
    if library == "pyro4":
        calls.append(("list", {"metadata_all": tags, "metadata_any": other_tags, "return_metadata": flag}))
    else:
        calls.append(("yplookup", {"meta_all": tags, "meta_any": other_tags, "return_metadata": flag}))
    return choose.choice(calls)


@matrix.cell("name server", "random calls have the same answers")
@pytest.mark.parametrize("library", PROTOCOLS)
def test_the_same_calls_have_the_same_answers(library: str) -> None:
    choose = random.Random(20)
    calls = [any_call(choose, library) for _ in range(CALLS)]
    done = subprocess.run(
        [stock_python(), "-c", STOCK, library], input=json.dumps(calls), capture_output=True, text=True, check=True
    )
    expected = json.loads(done.stdout)
    found = trio.run(answers_of_ours, calls, PROTOCOLS[library])
    for call, theirs, ours in zip(calls, expected, found, strict=True):
        assert comparable(ours) == comparable(theirs), call
    assert sum(error is None for _, error in expected) > CALLS // 4, "the calls are not mostly errors"


def comparable(answer: list[Any]) -> list[Any]:
    """Texts are a promise for errors that programs look into; for wrong types and URIs the class is."""
    value, error = answer
    if error is not None and error[0] in ("TypeError", "PyroError"):
        return [value, error[0]]
    if error is not None and "meta_all" in error[1]:
        return [value, error[0]]
    return [value, error]


async def answers_of_ours(calls: list[tuple[str, dict[str, Any]]], protocol: int) -> list[Any]:
    ns = NameServer()
    await ns.register("Pyro.NameServer", "PYRO:Pyro.NameServer@h:9090")
    answers: list[Any] = []
    for method, kwargs in calls:
        with called_by(protocol):
            try:
                answers.append([plain(await getattr(ns, method)(**kwargs)), None])
            except Exception as error:
                answers.append([None, [type(error).__name__, str(error)]])
    return answers


@contextmanager
def called_by(protocol: int) -> Iterator[None]:
    context = SimpleNamespace(protocol=protocol, peer="127.0.0.1:40000", client=SimpleNamespace(is_own=False))
    token = current_context_var.set(cast(CallContext, context))
    yield
    current_context_var.reset(token)


def plain(value: Any) -> Any:
    """As the stock program writes its answers."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | list):
        return sorted(value)
    return str(value) if isinstance(value, Uri) else value
