"""What the commands start with: so light that an early Ctrl-C ends them in silence, with 130."""

import gc
import signal


def main() -> None:
    """Load the command line and run it. While it loads, Ctrl-C simply ends the process, and nobody looks for garbage:
    there is none among modules, and looking takes a fifteenth of the time."""
    gc.disable()
    _let_interrupts_end_it()
    from pyroxfer.cli import main as run

    run(prog_name="pyroxfer")


def dispatcher() -> None:
    """The same for the dispatcher, whose commands are loaded with it."""
    _let_interrupts_end_it()
    from pyroxfer_dispatcher.cli import main as run

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run(prog_name="pyroxfer-dispatcher")


def _let_interrupts_end_it() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
