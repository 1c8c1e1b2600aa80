"""What is shown of a transfer: the bar while it goes on, the line at its end."""

from __future__ import annotations

from pyroxfer import Receipt
from pyroxfer.cli.events import summary
from pyroxfer.progress import Progress, TqdmProgress


def test_the_bar_is_full_only_when_everything_is_committed() -> None:
    """All bytes acknowledged is not the end; the end is the receipt."""
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with TqdmProgress("file", terminal) as bar:
        bar(Progress("offer", "f", 1000, 0, 1000))
        bar(Progress("progress", done=1000, total=1000))
        bar(Progress("warn", "l\x1b", text="left out"))
        assert bar._bar.n < 1000
        bar.complete()
        assert bar._bar.n == 1000
    assert "\x1b" not in terminal.getvalue().replace("\x1b[A", "")
    assert "100%" in terminal.getvalue()


def test_the_bar_is_silent_without_a_terminal() -> None:
    import io

    text = io.StringIO()
    with TqdmProgress("file", text) as bar:
        bar(Progress("offer", "f", 10, 0, 10))
        bar(Progress("progress", done=10, total=10))
        bar.complete()
    assert text.getvalue() == ""


def test_a_summary_of_nothing() -> None:
    assert summary([], "x") == "0 files, 0 bytes committed to x (nothing to move)"


def test_a_summary_does_not_call_committed_what_was_skipped() -> None:
    moved = Receipt("a", 5, "", "blake3", "data", "iter", "small")
    skipped = Receipt("b", 7, "", "blake3", "data", "none", "skipped")
    assert summary(skipped, "x") == "b: left as it is at x (skipped)"
    assert summary([moved, skipped], "x") == "1 files, 5 bytes committed to x (iter, 1 skipped)"
