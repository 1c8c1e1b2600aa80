"""Scripts explain themselves, refuse what they do not know before setting anything up, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
COMMANDS = sorted(path.name for path in SCRIPTS.iterdir() if path.is_file() and not path.suffix)
WRONG = {
    "bench": ["calls"],
    "build": ["wheel"],
    "check": ["no-environment"],
    "cuts": ["--count", "many"],
    "demo": ["--size", "large"],
    "dispatch-kills": ["--counts", "1"],
    "dispatch-memory": ["--mib", "1MiB"],
    "faults": ["10"],
    "profile": ["block", "64"],
    "rolling": ["--count", "none"],
    "scale": ["--seed"],
    "soak": ["--minutes", "long"],
    "swaps": ["--count", "x"],
    "test": ["--python"],
}
"""For every script that does not hand its arguments on."""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The scripts alone, in a place where whatever they make would be seen."""
    return shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))


def run(scripts: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(scripts.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([scripts / name, *words], env=environment, capture_output=True, text=True, timeout=60)
    assert [made.name for made in scripts.parent.iterdir()] == ["scripts"], "something was set up"
    return done


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_there_at_once(scripts: Path, name: str) -> None:
    done = run(scripts, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"./scripts/{name}" in done.stdout or name == "build"
    assert "#" not in done.stdout


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_at_once(scripts: Path, name: str) -> None:
    """With what would be right, and no traceback."""
    done = run(scripts, name, *WRONG[name])
    assert done.returncode in (1, 2)
    assert name in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


TOO_FEW = [
    ("bench", "--repetitions", "0"),
    ("bench", "--seconds", "nan"),
    ("cuts", "--count", "0"),
    ("dispatch-kills", "--count", "-1"),
    ("dispatch-memory", "--clients", "0"),
    ("dispatch-memory", "--mib", "-256"),
    ("faults", "--count", "0"),
    ("rolling", "--count", "0"),
    ("rolling", "--callers", "0"),
    ("soak", "--minutes", "0"),
    ("soak", "--minutes", "-1"),
    ("swaps", "--count", "-5"),
]


@pytest.mark.parametrize(("name", "option", "value"), TOO_FEW)
def test_a_number_that_leaves_nothing_to_do_is_refused(scripts: Path, name: str, option: str, value: str) -> None:
    """A campaign of nothing would say that all is well."""
    done = run(scripts, name, f"{option}={value}")
    assert done.returncode == 2
    assert f"{option}: {value} is not a number of at least " in done.stderr.splitlines()[-1]


def test_every_script_is_looked_at() -> None:
    assert set(COMMANDS) == {*WRONG, "interop"}


PARENT = """
import subprocess, sys
from children import END_WITH_PARENT
child = "import time; print('up', flush=True); time.sleep(600)"
subprocess.run([sys.executable, "-c", child], preexec_fn=END_WITH_PARENT)
"""
BENCHMARK = """
import sys, time
from processes import Server
server = "import time; print('PYRO:adder@localhost:1', flush=True); time.sleep(600)"
with Server([sys.executable, "-c", server]):
    print("up", flush=True)
    time.sleep(600)
"""
TOLD = """
import time
from children import clean_up_when_told_to_end
clean_up_when_told_to_end()
try:
    print("up", flush=True)
    time.sleep(600)
finally:
    print("cleaned up", flush=True)
"""


def started(program: str) -> subprocess.Popen[str]:
    """A program that has said that it is up."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{SCRIPTS / 'sharedlib'}:{SCRIPTS / 'benchlib'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("program", [PARENT, BENCHMARK], ids=["a script", "the benchmark"])
def test_services_do_not_outlive_a_script_that_is_killed(program: str) -> None:
    """Its standard error, which they share, ends with the last of them."""
    with started(program) as process:
        process.kill()
        assert process.communicate(timeout=60) == ("", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_script_that_is_told_to_end_cleans_up(number: signal.Signals) -> None:
    with started(TOLD) as process:
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == "cleaned up\n"
    assert process.returncode == 128 + number
