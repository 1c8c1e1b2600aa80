"""TLS and tokens of the file commands: every channel, the exit codes, and what a server reads again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Certificates
from click.testing import CliRunner, Result

from pyroxfer.cli.main import main

COMMAND = [sys.executable, "-m", "pyroxfer"]
TOKEN, OTHER = "correct-horse-battery", "staple-something-else"


def run(*arguments: object, **env: str) -> Result:
    """One command, in this process; it never ends with anything but an exit code."""
    done = CliRunner().invoke(main, [*map(str, arguments)], env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


class Server:
    """A running ``pyroxfer serve``."""

    def __init__(self, process: subprocess.Popen[str], place: str) -> None:
        self.process = process
        self.place = place

    def hang_up(self, word: str) -> None:
        """SIGHUP, and wait for a line of the log with a word in it."""
        self.process.send_signal(signal.SIGHUP)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if word in line:
                return
        raise AssertionError("the server has ended")


@contextmanager
def served(folder: Path, *options: object, **env: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [*COMMAND, "serve", str(folder), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        found = re.search(r" at (\S+) ", line)
        assert found is not None, process.stderr.read()
        yield Server(process, found[1])
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def test_every_channel_under_tls_with_a_token(
    certificates: Certificates, tokens: Path, folder: Path, tmp_path: Path
) -> None:
    """Files arrive whole, over side streams, which are under TLS, too; by options and by the environment."""
    data = os.urandom(3_000_000)
    source = tmp_path / "file"
    source.write_bytes(data)
    tls = ("--tls-ca", certificates.ca, "--token-file", tokens)
    with served(folder, "--tls-cert", certificates.server, "--token-file", tokens) as server:
        for channel in ("annot", "raw"):
            sent = run("send", source, f"{server.place}/{channel}", "--channel", channel, *tls)
            assert sent.exit_code == 0, sent.stderr
            assert f"({channel}: " in sent.stderr
            assert (folder / channel).read_bytes() == data
            back = tmp_path / f"back-{channel}"
            env = {"PYROXFER_TLS_CA": str(certificates.ca), "PYROXFER_TOKEN": TOKEN}
            got = run("get", f"{server.place}/{channel}", back, "--channel", channel, **env)
            assert got.exit_code == 0, got.stderr
            assert f"({channel}: " in got.stderr
            assert back.read_bytes() == data
        assert run("ls", server.place, *tls).stdout.count("\n") == 2
        assert run("rm", f"{server.place}/raw", *tls).exit_code == 0


def test_who_is_not_let_in_gets_exit_code_4(
    certificates: Certificates, tokens: Path, folder: Path, tmp_path: Path
) -> None:
    """One line says what is wrong and what to do."""
    wrong = tmp_path / "wrong"
    wrong.write_text(OTHER)
    wrong.chmod(0o600)
    ca = ("--tls-ca", certificates.ca)
    with served(folder, "--tls-cert", certificates.server, "--token-file", tokens) as server:
        for options, text in (
            ((*ca,), "authentication required: show a token (PYROXFER_TOKEN or --token-file)"),
            ((*ca, "--token-file", wrong), "the token was not accepted"),
            (("--tls-ca", certificates.other_ca), "a CA that is not known here: name the CA's file (--tls-ca)"),
            (("--tls",), "a CA that is not known here: name the CA's file (--tls-ca)"),
            (("--tls-key", certificates.client), "--tls-key needs --tls-cert"),
        ):
            done = run("ls", server.place, *options)
            assert (done.exit_code, done.stderr.count("\n")) == (4, 1), done.stderr
            assert text in done.stderr
        plain = run("ls", server.place)
        assert plain.exit_code == 5
        assert plain.stderr.count("\n") == 1


def test_mutual_tls(certificates: Certificates, folder: Path) -> None:
    """With a CA for clients, only who has a certificate of it comes in."""
    with served(folder, "--tls-cert", certificates.server, "--tls-ca", certificates.ca) as server:
        ca = ("--tls-ca", certificates.ca)
        assert run("ls", server.place, *ca, "--tls-cert", certificates.client).exit_code == 0
        done = run("ls", server.place, *ca)
        assert (done.exit_code, "--tls-cert" in done.stderr) == (4, True)
        done = run("ls", server.place, *ca, "--tls-cert", certificates.stranger)
        assert (done.exit_code, "does not know the CA" in done.stderr) == (4, True)


def test_a_hangup_reads_certificate_and_tokens_again(
    certificates: Certificates, tokens: Path, folder: Path, tmp_path: Path
) -> None:
    """An expired certificate is replaced, a token changes hands, and what cannot be used changes nothing."""
    cert = tmp_path / "server.pem"
    shutil.copy(certificates.expired, cert)
    ca = ("--tls-ca", certificates.ca)
    with served(folder, "--tls-cert", cert, "--token-file", tokens) as server:
        expired = run("ls", server.place, *ca, PYROXFER_TOKEN=TOKEN)
        assert (expired.exit_code, "has expired" in expired.stderr) == (4, True)
        shutil.copy(certificates.server, cert)
        tokens.write_text(f"bob {OTHER}\n")
        server.hang_up("were read again")
        assert run("ls", server.place, *ca, PYROXFER_TOKEN=OTHER).exit_code == 0
        assert run("ls", server.place, *ca, PYROXFER_TOKEN=TOKEN).exit_code == 4
        cert.write_text("rubbish")
        server.hang_up("not reloaded")
        assert run("ls", server.place, *ca, PYROXFER_TOKEN=OTHER).exit_code == 0


def test_an_open_door_is_refused_or_said_aloud(certificates: Certificates, tokens: Path, folder: Path) -> None:
    """Beyond this machine TLS and a proof are needed, or a word."""
    cert = ("--tls-cert", certificates.server)
    for options, text in (
        ((), "everybody on the network in, and send everything in clear"),
        (cert, "let everybody in: it needs tokens"),
        (("--token-file", tokens), "everything in clear: it needs TLS"),
    ):
        done = run("serve", folder, "--listen", "0.0.0.0:0", *options)
        assert (done.exit_code, done.stderr.count("\n")) == (4, 1), done.stderr
        assert text in done.stderr
        assert "--insecure" in done.stderr
    with served(folder, "--listen", "0.0.0.0:0", *cert, "--token-file", tokens) as server:
        pass
    with served(folder, "--listen", "0.0.0.0:0", "--insecure") as server:
        server.process.terminate()
        assert server.process.stderr is not None
        assert "Insecure: listening on 0.0.0.0 would let everybody" in server.process.stderr.read()


def test_secrets_are_not_taken_from_the_command_line() -> None:
    """There is no option for one."""
    shown = run("send", "--help").stdout + run("serve", "--help").stdout
    assert "--token-file" in shown
    assert "--token " not in shown
    assert "password" not in shown
