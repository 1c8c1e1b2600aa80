"""README and docs are true: their commands run, their programs run, their files exist, their configuration loads."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pyroxfer_dispatcher import load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PORT_IN_TEXT = "4000"
START_WITHIN_S = 20.0


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def every(language: str) -> list[object]:
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, language), 1)
    ]


def with_block(language: str) -> list[object]:
    return [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("program", every("python"))
def test_the_programs_run(program: str, tmp_path: Path) -> None:
    """Each Python example is a whole program that ends well, without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", with_block("sh"))
def test_the_commands_run(page: Path, tmp_path: Path) -> None:
    """The commands of a page, line by line in an empty folder, all exit 0."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "report.txt").write_text("all is well\n")
    port = str(free_port())
    with ExitStack() as running:
        for line in "\n".join(blocks(page, "sh")).splitlines():
            command = line.replace(PORT_IN_TEXT, port)
            if command.endswith("&"):
                running.enter_context(server(command.rstrip("& "), int(port), tmp_path))
            else:
                done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), timeout=60)
                assert done.returncode == 0, line
    assert not list(tmp_path.rglob(".pyroxfer-*"))


@contextmanager
def server(command: str, port: int, folder: Path) -> Iterator[None]:
    """The command in the background, once its port answers."""
    with subprocess.Popen(shlex.split(command), cwd=folder, env=environment(), stdout=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port)
            yield
        finally:
            process.terminate()


def wait_for_port(port: int) -> None:
    end = time.monotonic() + START_WITHIN_S
    while True:
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)  # another process decides when; nothing here can wait for it


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    """Ours with the commands of this interpreter's environment first."""
    commands = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([commands, os.environ["PATH"]])}


@pytest.mark.parametrize("text", every("toml"))
def test_the_configuration_loads(text: str, tmp_path: Path) -> None:
    """A dispatcher file on a page is one that the dispatcher takes."""
    path = tmp_path / "dispatcher.toml"
    path.write_text(text)
    assert load_config(path).services


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files_exist(page: Path) -> None:
    """Scripts and pages that a page names are there, and scripts can be started."""
    text = page.read_text()
    for script in re.findall(r"\./scripts/\w+", text):
        assert os.access(ROOT / script, os.X_OK), script
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
