"""README and docs are true: their commands run, their programs run, their files exist, their configuration loads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from children import END_WITH_PARENT
from ports import free_ports

from pyroxfer_dispatcher import load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PORT_IN_TEXT = "4000"
UNTIL_SERVED = f"until : 2>/dev/null <>/dev/tcp/localhost/{PORT_IN_TEXT}; do sleep 0.05; done"


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
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", with_block("sh"))
def test_the_commands_run(page: Path, tmp_path: Path) -> None:
    """The commands of a page, pasted into a shell in an empty folder, all exit 0. They stand as they are but for the
    port, and for the pause after the start of a server: a busy machine may need more, and an idle one less."""
    text = "\n".join(blocks(page, "sh"))
    text = re.sub(r"^sleep .*", UNTIL_SERVED, text, flags=re.MULTILINE).replace(PORT_IN_TEXT, str(free_ports(1)[0]))
    script = f"set -e\ntrap 'kill $(jobs -p)' EXIT\n{text}"
    code, errors = in_shell(script, tmp_path, timeout_s=280)
    assert code == 0, errors
    assert not list(tmp_path.rglob(".pyroxfer-*"))


def in_shell(script: str, folder: Path, timeout_s: float) -> tuple[int, str]:
    """Run commands: their exit code, and what they complain of. What they started ends with this, however it ends."""
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=END_WITH_PARENT,
    ) as shell:
        try:
            _, errors = shell.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(shell.pid, signal.SIGTERM)
            shell.communicate()  # until the last of them is gone
            raise
    return shell.returncode, errors


def test_commands_that_take_too_long_leave_no_server_behind(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        in_shell("trap 'kill $(jobs -p)' EXIT; sleep 600 & sleep 600", tmp_path, timeout_s=0.5)


def environment(folder: Path) -> dict[str, str]:
    """Ours with the commands of this interpreter's environment first; what servers keep goes into the folder."""
    commands = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "XDG_STATE_HOME": str(folder / "state"),
        "PATH": os.pathsep.join([commands, os.environ["PATH"]]),
    }


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
