"""The command line: `main` is the group behind the `pyroxfer` command."""

from .main import main as main
