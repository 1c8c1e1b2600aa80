"""Tracebacks of the facade: the local one, and behind it what the other end sent."""

from __future__ import annotations

import sys
from types import TracebackType

import pytest

from pyroxfer_core.blocking import errors, util


def caught(remote: object = None) -> tuple[type[BaseException], BaseException, TracebackType]:
    try:
        raise ValueError("broken")
    except ValueError as error:
        if remote is not None:
            error._pyroTraceback = remote  # type: ignore[attr-defined]  # as Pyro marks what came from afar
        found = sys.exc_info()
        assert found[0] is not None
        return found


def test_the_error_being_handled_is_shown_with_both_ends() -> None:
    """Each remote line stands behind a bar, whatever pieces the peer cut its text into."""
    try:
        raise caught(["Traceback:\n  there, line 1\n", "KeyError", ": 'x'\n"])[1]
    except ValueError as error:
        text = "".join(errors.get_pyro_traceback())
        assert text == "".join(util.getPyroTraceback(ValueError, error, error.__traceback__))
    local, _, remote = text.partition(" +---")
    assert local.endswith("ValueError: broken\n") and "in caught" in local
    assert remote.splitlines()[1:] == [" | Traceback:", " |   there, line 1", " | KeyError: 'x'", " +---"]


@pytest.mark.parametrize("remote", [None, [], ""])
def test_a_local_error_is_shown_as_python_does(remote: object) -> None:
    text = "".join(errors.get_pyro_traceback(*caught(remote)))
    assert text.startswith("Traceback (most recent call last)") and text.endswith("ValueError: broken\n")


@pytest.mark.parametrize("remote", ["text", 42, {"a": 1}, [1, None]])
def test_a_peer_that_sends_no_lines_is_shown_all_the_same(remote: object) -> None:
    assert " | " in "".join(errors.get_pyro_traceback(*caught(remote)))


def test_without_an_error_there_are_no_lines() -> None:
    assert errors.get_pyro_traceback() == errors.format_traceback() == []
    with pytest.raises(TypeError, match="the error as well"):
        errors.get_pyro_traceback(ValueError)


def test_detailed_lines_show_variables() -> None:
    error = caught("there")
    assert "remote = 'there'" in "".join(util.formatTraceback(*error, detailed=True))
    assert "remote =" not in "".join(util.formatTraceback(*error))


def test_the_hook_of_the_interpreter_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    util.excepthook(*caught(["there\n"]))
    assert " | there\n" in capsys.readouterr().err
