"""``python -m pyroxfer_dispatcher``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="pyroxfer-dispatcher")
