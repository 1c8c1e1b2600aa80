"""Fixtures that start real peers once for the whole run, and the matrix at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import matrix
import pytest
from peers import Client, Service, StartClient, StartService


@pytest.fixture(scope="session")
def service() -> Iterator[StartService]:
    """``service(library, *options)``: a running daemon, started at its first use and shared by the tests."""
    with ExitStack() as stack:
        running: dict[tuple[str, ...], Service] = {}

        def start(library: str, *options: str) -> Service:
            key = (library, *options)
            if key not in running:
                running[key] = stack.enter_context(Service(library, *options))
            return running[key]

        yield start


@pytest.fixture(scope="session")
def client() -> Iterator[StartClient]:
    """``client(library)``: a running client program, started at its first use and shared by the tests."""
    with ExitStack() as stack:
        running: dict[str, Client] = {}

        def start(library: str) -> Client:
            if library not in running:
                running[library] = stack.enter_context(Client(library))
            return running[library]

        yield start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="print which peers did what with which serializer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(pytest.mark.interop)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--matrix", default=False):
        reports = [
            report for kind in ("passed", "failed", "error") for report in terminalreporter.stats.get(kind, [])
        ]
        for line in matrix.lines(reports):
            terminalreporter.write_line(line)
