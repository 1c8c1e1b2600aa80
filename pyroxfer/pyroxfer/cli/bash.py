"""Completion in bash, which takes addresses apart where they have colons and the like."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any, Final

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_BASH: Final = """\
%(complete_func)s() {
    local completion type value
    COMPREPLY=()
    while IFS= read -r completion; do
        type=${completion%%%%,*} value=${completion#*,}
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("$value")
                [[ $value == */ ]] && compopt -o nospace ;;
        esac
    done < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_BREAKS: Final = ":=@"
"""At these bash takes words apart; each is in some address."""
_SPECIAL: Final = re.compile(r"[^\w@%+=:,./~-]")
"""What must not stand bare on a command line."""


class BashAddresses(BashComplete):
    """Completion in bash, which sees several words in one address: the word is read from the line as it was typed,
    and bash is given what belongs in the place of the last of its own words."""

    source_template = _BASH
    _line = ""
    _incomplete = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one."""
        self._line = os.environ["COMP_LINE"]
        *words, last = split_arg_string(f"{self._line}x")  # with a letter, a word begins behind a space, too
        self._incomplete = last[:-1]
        return words[1:], self._incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        value = str(item.value)
        if not _is_quoted(self._line):
            breaks = set(_BREAKS).intersection(os.environ.get("COMP_WORDBREAKS", _BREAKS))
            known = 1 + max((self._incomplete.rfind(char) for char in breaks), default=-1)
            value = _SPECIAL.sub(r"\\\g<0>", value[known:])
        return f"{item.type},{value}"


def _is_quoted(line: str) -> bool:
    """Whether a quote is open at the end of a command line."""
    try:
        shlex.split(f"{line}x")
    except ValueError:
        return True
    return False


def take_addresses_whole() -> None:
    """Have click complete addresses in bash as `BashAddresses` does."""
    add_completion_class(BashAddresses)
