"""``pyroxfer nsc``: ask and change a name server from the command line, with the commands of Pyro's own tool."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import click
import trio
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ..client.member import Call
from ..client.proxy import Proxy
from ..nameserver.lookup import checked_listing, locate_ns, search_tags
from ..nameserver.service import STALE
from ..settings import Settings
from ._run import Failure, exit_code_of, printable, run
from ._watch import Watch
from .access import ClientAccess, client_options
from .group import CommandGroup
from .place import NS_HOST_VARIABLES, NS_PORT_VARIABLES


@dataclass
class Wanted:
    """Options given before or after the command's name."""

    host: str | None = None
    port: int | None = None
    unixsocket: str | None = None
    verbose: bool = False
    json: bool = False
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None

    def settings(self) -> Settings:
        """TLS and token, by the options."""
        access = ClientAccess(
            tls=self.tls,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_ca=self.tls_ca,
            token_file=self.token_file,
        )
        return access.settings(Settings())

    @property
    def place(self) -> str | None:
        """The host, as `locate_ns` takes it."""
        return f"./u:{self.unixsocket}" if self.unixsocket else self.host


@dataclass(frozen=True)
class Answer:
    """What a command found, for people and for programs."""

    lines: list[str]
    data: Any


COMPLETION_S: Final = 1.0
"""How long a shell waits for names."""
MAX_COMPLETIONS: Final = 1_000
Action = Callable[[Proxy], Awaitable[Answer]]


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Note an option; what stands on the command line, on either side, goes before the environment."""
    wanted, name = context.ensure_object(Wanted), parameter.name
    if not value or name is None:
        return
    if context.get_parameter_source(name) is ParameterSource.COMMANDLINE or not getattr(wanted, name):
        setattr(wanted, name, value)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pyro's options and ``--json``; they may stand on either side of the command's name."""
    option = partial(click.option, callback=_keep, expose_value=False)
    port, port_help = click.IntRange(1, 65535), "Port of the name server (or of the broadcast, without a host)."
    options = (
        option(
            "-n",
            "--host",
            metavar="HOST",
            envvar=NS_HOST_VARIABLES,
            show_envvar=True,
            help="Host of the name server.",
        ),
        option("-p", "--port", metavar="PORT", envvar=NS_PORT_VARIABLES, show_envvar=True, type=port, help=port_help),
        option("-u", "--unixsocket", metavar="PATH", help="Unix socket of the name server, instead."),
        option("-v", "--verbose", is_flag=True, help="Say what is done."),
        option("--json", is_flag=True, help="Answer as one line of JSON."),
        *client_options(option),
    )
    for decorate in reversed(options):
        command = decorate(command)
    return command


@click.group(cls=CommandGroup)
@_with_options
@click.pass_context
def nsc(context: click.Context) -> None:
    """Ask and change a name server."""
    context.ensure_object(Wanted)


def _command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    def decorate(function: Callable[..., None]) -> click.Command:
        return nsc.command(name)(_with_options(click.pass_obj(function)))

    return decorate


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For the shell: names that begin like this, asked from the name server; nothing when it does not answer soon."""
    wanted = context.ensure_object(Wanted)

    async def ask() -> list[str]:
        with trio.move_on_after(COMPLETION_S):
            place, port, settings = wanted.place, wanted.port, wanted.settings()
            async with await locate_ns(place, port, broadcast=False, settings=settings) as ns:
                return sorted(checked_listing(await ns.list(prefix=incomplete or None, return_metadata=True)))
        return []

    try:
        found = trio.run(ask)
    except Exception:  # a shell that is waiting for a word has no use for an error
        return []
    return [CompletionItem(name) for name in found if name.isprintable() and " " not in name][:MAX_COMPLETIONS]


async def asked(call: Call) -> Any:
    """The result of a call; where it comes from memory, that is said."""
    result = await call
    seconds = call.response_annotations.get(STALE)
    if seconds is not None:
        text = (
            f"Warning: from memory; the storage of the name server has not answered for {int.from_bytes(seconds)} s."
        )
        click.echo(text, err=True)
    return result


@_command("ping")
def ping(wanted: Wanted) -> None:
    """Is the name server there?"""

    async def action(ns: Proxy) -> Answer:
        await ns.ping()
        return Answer(["Name server ping ok."], {"ok": True})

    _carry_out(wanted, action)


@_command("list")
@click.argument("prefix", required=False, shell_complete=_names)
def list_(wanted: Wanted, prefix: str | None) -> None:
    """Show all names, or those that begin with PREFIX."""

    async def action(ns: Proxy) -> Answer:
        listing = await asked(ns.list(prefix=prefix, return_metadata=True))
        return _listing(listing, f"- prefix '{prefix}'" if prefix else "")

    _carry_out(wanted, action)


@_command("listmatching")
@click.argument("regex")
def listmatching(wanted: Wanted, regex: str) -> None:
    """Show the names that REGEX matches at their beginning."""

    async def action(ns: Proxy) -> Answer:
        return _listing(await asked(ns.list(regex=regex, return_metadata=True)), f"- regex '{regex}'")

    _carry_out(wanted, action)


@_command("lookup")
@click.argument("name", shell_complete=_names)
@click.option("-a", "--all", "every", is_flag=True, help="Show all addresses, with protocols and leases.")
def lookup(wanted: Wanted, name: str, every: bool) -> None:
    """Show the URI of NAME."""

    async def action(ns: Proxy) -> Answer:
        if every:
            told = await asked(ns.lookup_all(name))
            return Answer(_addresses(told), {"name": name, **told})
        uri, tags = await asked(ns.lookup(name, return_metadata=True))
        lines = [str(uri), f"metadata: {sorted(tags)}"] if tags else [str(uri)]
        return Answer(lines, {"name": name, "uri": str(uri), "metadata": sorted(tags)})

    _carry_out(wanted, action)


@_command("register")
@click.argument("name", shell_complete=_names)
@click.argument("uri")
@click.option("--add", is_flag=True, help="One more address of a name that may have some.")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    type=click.Choice(["48", "502"]),
    help="What is spoken there; twice for both.",
)
def register(wanted: Wanted, name: str, uri: str, add: bool, protocols: tuple[str, ...]) -> None:
    """Register URI under NAME, which must be free unless an address is added."""
    beyond: dict[str, Any] = {"add": True} if add else {}
    if protocols:
        beyond["protocols"] = [int(protocol) for protocol in protocols]

    async def action(ns: Proxy) -> Answer:
        await ns.register(name, uri, safe=not add, **beyond)
        return Answer([f"Registered {name}"], {"name": name, "uri": uri})

    _carry_out(wanted, action)


@_command("remove")
@click.argument("name", shell_complete=_names)
@click.option("--uri", help="Only this address of it.")
def remove(wanted: Wanted, name: str, uri: str | None) -> None:
    """Remove NAME."""

    async def action(ns: Proxy) -> Answer:
        removed = await (ns.remove(name) if uri is None else ns.remove(name, uri=uri))
        return Answer([f"Removed {name}" if removed else "Nothing removed"], {"removed": removed})

    _carry_out(wanted, action)


@_command("removematching")
@click.argument("regex")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def removematching(wanted: Wanted, regex: str, yes: bool) -> None:
    """Remove the names that REGEX matches at their beginning."""

    async def action(ns: Proxy) -> Answer:
        removed = await ns.remove(regex=regex)
        return Answer([f"{removed} items removed."], {"removed": removed})

    if yes or _is_sure(wanted):
        _carry_out(wanted, action)


@_command("setmeta")
@click.argument("name", shell_complete=_names)
@click.argument("tags", nargs=-1)
def setmeta(wanted: Wanted, name: str, tags: tuple[str, ...]) -> None:
    """Replace the metadata of NAME by TAGS; without any, clear it."""

    async def action(ns: Proxy) -> Answer:
        await ns.set_metadata(name, list(tags))
        return Answer(["Metadata updated" if tags else "Metadata cleared"], {"name": name, "metadata": sorted(tags)})

    _carry_out(wanted, action)


@_command("watch")
@click.argument("prefix", required=False, default="", shell_complete=_names)
@click.option("--after", type=int, metavar="REVISION", help="Only what changed after it; earlier output has it.")
def watch(wanted: Wanted, prefix: str, after: int | None) -> None:
    """Show the names, or those that begin with PREFIX, and then every change, until interrupted."""

    async def watch_it() -> None:
        await Watch(prefix, after, wanted.json).run(wanted.place, wanted.port, wanted.settings())

    run(watch_it)


def _add_tag_search(name: str, *, every: bool) -> None:
    @_command(name)
    @click.argument("tags", nargs=-1, required=True)
    def search(wanted: Wanted, tags: tuple[str, ...]) -> None:
        async def action(ns: Proxy) -> Answer:
            found = await search_tags(ns, tags if every else (), () if every else tags)
            return _listing(found, " - searched by metadata")

        _carry_out(wanted, action)

    search.help = f"Show the names that have {'all' if every else 'any'} of TAGS."


for _name in ("yplookup_all", "listmeta_all", "yplookup_any", "listmeta_any"):
    _add_tag_search(_name, every=_name.endswith("_all"))


def _listing(listing: Any, title: str) -> Answer:
    entries = checked_listing(listing)
    lines = [f"--------START LIST {title}"]
    for name, (uri, tags) in sorted(entries.items()):
        lines.append(f"{name} --> {uri}")
        if tags:
            lines.append(f"    metadata: {tags}")
    lines.append(f"--------END LIST {title}")
    return Answer(lines, {name: {"uri": uri, "metadata": tags} for name, (uri, tags) in sorted(entries.items())})


def _addresses(told: Any) -> list[str]:
    lines = []
    for address in told["addresses"]:
        spoken = ", ".join(map(str, address["protocols"])) or "not told"
        lease = f"; lease of {address['ttl']:g} s" if "ttl" in address else ""
        lines.append(f"{address['uri']}  (protocols: {spoken}{lease})")
        if address["metadata"]:
            lines.append(f"    metadata: {address['metadata']}")
    return lines


def _is_sure(wanted: Wanted) -> bool:
    question = "Potentially removing lots of items from the Name server. Are you sure (y/n)?"
    try:
        answer = click.prompt(question, prompt_suffix="", default="n", show_default=False, err=wanted.json)
    except click.Abort as abort:
        click.echo(err=wanted.json)  # ends the line of the question
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise click.UsageError("nobody is there to answer; --yes removes without asking.") from None
    return str(answer).strip() in ("y", "Y")


def _carry_out(wanted: Wanted, action: Action) -> None:
    answer = run(_ask, wanted, action)
    if wanted.json:
        click.echo(json.dumps(answer.data))
        return
    for line in answer.lines:
        click.echo(printable(line))
    if wanted.verbose:
        click.echo("Done.")


async def _ask(wanted: Wanted, action: Action) -> Answer:
    talkative = wanted.verbose and not wanted.json
    if talkative:
        click.echo("Locating name server...")
    async with await locate_ns(wanted.place, wanted.port, settings=wanted.settings()) as ns:
        if talkative:
            click.echo(f"Name server found: {ns._pyroUri}")
        try:
            return await action(ns)
        except Exception as error:  # a remote object may raise anything
            raise Failure(f"{type(error).__name__} - {error}", exit_code_of(error)) from error
