"""Fixtures that start real peers once for the whole run, and the matrix at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

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
    parser.addoption("--matrix-page", metavar="FILE", type=Path, help="write it into this page")
    parser.addoption("--matrix-keep", action="store_true", help="keep what that page says of cells that are not run")
    parser.addoption("--cells", action="store_true", help="print the cells that tests were collected for, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cell(table, row, column, cannot): its place in the matrix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(pytest.mark.interop)
            place = matrix.cell_of(item)
            if place is not None:
                item.user_properties.append(("interop", tuple(place)))  # as plain as a report that crosses processes


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.getoption("--cells", default=False):
        places = {place for item in session.items for name, place in item.user_properties if name == "interop"}
        print("cells:", json.dumps(sorted(places)))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [report for kind in ("passed", "failed", "error") for report in terminalreporter.stats.get(kind, [])]
    if config.getoption("--matrix", default=False):
        for line in matrix.page(matrix.found(reports)):
            terminalreporter.write_line(line)
    path = config.getoption("--matrix-page", default=None)
    if path is not None:
        kept = matrix.read(path) if config.getoption("--matrix-keep") else {}
        matrix.write(path, kept | matrix.found(reports))
