"""What the ``pyroxfer`` command starts with: so light that an early Ctrl-C ends it in silence, with 130."""

import gc
import signal


def main() -> None:
    """Load the command line and run it. While it loads, Ctrl-C simply ends the process, and nobody looks for garbage:
    there is none among modules, and looking takes a fifteenth of the time."""
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pyroxfer.cli import main as run

    run(prog_name="pyroxfer")
