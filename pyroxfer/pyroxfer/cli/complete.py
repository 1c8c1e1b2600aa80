"""Words for the shell: paths on a server, asked from it while somebody types."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMPLETION_S: Final = 2.0
MAX_COMPLETIONS: Final = 200
FILE: Final = "file"
"""What tells click's scripts to complete local names."""


def remote(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Remote paths that begin like this. Nothing when the server does not answer soon; local names where the word is
    not the address of a server with a slash behind it."""
    from click.shell_completion import CompletionItem  # only a shell needs it

    server, slash, path = incomplete.partition("/")
    local = not slash or server in ("", ".", "..", "~") or os.path.isdir(server)  # noqa: PTH112
    if local:
        return [CompletionItem(incomplete, type=FILE)]
    folder, _, beginning = path.rpartition("/")
    try:
        found = _listed(context, f"{server}/{folder}")
    except Exception:  # a shell that is waiting for a word has no use for an error
        return []
    before = f"{server}/{folder}/" if folder else f"{server}/"
    return [
        CompletionItem(before + entry.path + ("/" if entry.kind == "folder" else ""))
        for entry in found
        if entry.path.startswith(beginning) and entry.path.isprintable()
    ][:MAX_COMPLETIONS]


def _listed(context: click.Context, address: str) -> list[Any]:
    import trio

    from pyroxfer_core import Settings
    from pyroxfer_core.cli.access import ClientAccess

    from ..client import ls

    names = ("tls", "tls_cert", "tls_key", "tls_ca", "token_file")
    given = {name: context.params.get(name) for name in names}
    access = ClientAccess(**{**given, "tls": bool(given["tls"])})  # type: ignore[arg-type]

    async def ask() -> list[Any]:
        with trio.move_on_after(COMPLETION_S):
            return list(await ls(address, settings=access.settings(Settings())))
        return []

    return trio.run(ask)
