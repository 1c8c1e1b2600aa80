"""One TOML file becomes frozen, checked values. Every problem of a file is found at once, each named by its path."""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec

from pyroxfer_core import Uri
from pyroxfer_core.errors import PyroError
from pyroxfer_core.nameserver import open_registry

from .backends import MAX_WEIGHT
from .balance import LEAST_OF_TWO, POLICIES
from .environment import PREFIX, unknown_in, value_of, variables_in
from .origin import line_of, lines_of
from .routes import HERE, check_pattern

DEFAULT_METHODS: Final = ("process", "process_blob", "publish", "submit", "handle")
MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
"""A larger file is not a configuration."""
ETCD: Final = "etcd:"
"""How the place of a registry begins that is no name server."""
TABLE: Final = "dispatcher"
"""Where all of it may stand in a file that is about more than the dispatcher."""
MAX_SOCKET_PATH: Final = 100
"""The kernel has room for 107."""

_METHOD: Final = re.compile(r"(?!_)[^\W\d]\w*")
_OBJECT: Final = re.compile(r"[^\s@]+")

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class ConfigError(PyroError):
    """The configuration cannot be used. ``problems`` holds one line each.

    Args:
        text: of the file, to tell where in it.
        variables: by key, those of the environment that took its place.
    """

    def __init__(self, problems: Iterable[str], text: str = "", variables: Mapping[str, str] = _NOTHING) -> None:
        self.problems = tuple(problems)
        self._text = text
        self._variables = variables
        super().__init__("\n".join(self.problems))

    def lines(self, path: str) -> list[str]:
        """The problems, each with the place of the file, or the variable, where it is."""
        places = lines_of(self._text)
        return [self._line(problem, path, places) for problem in self.problems]

    def _line(self, problem: str, path: str, places: dict[str, int]) -> str:
        place = problem.partition(":")[0]
        if place.startswith(PREFIX):
            return problem
        variable = self._variables.get(re.split(r"[.\[]", place.removeprefix(f"{TABLE}."))[0])
        if variable is not None:
            return f"{variable}: {problem}"
        number = line_of(place, places)
        return f"{path}: {problem}" if number is None else f"{path}:{number}: {problem}"


class BackendConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[[services.backends]]``"""

    name: Text
    uri: Uri
    """``PYRO:object@host:port``, or ``PYRONAME:name[@host:port]``, looked up at every connect."""
    max_in_flight: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Calls it gets at once; beyond it the next backend is taken. Without: no limit."""
    weight: Annotated[float, msgspec.Meta(gt=0, le=MAX_WEIGHT)] = 1.0
    """How much it gets, compared with the others."""
    tags: tuple[Text, ...] = ()
    """What the service may prefer it for: a zone, a kind of machine."""


class DiscoverConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[[services.discover]]``: entries of a registry, each of whose addresses is a backend.

    All conditions that are given must hold. ``discover = "PYRONAME:name"`` and ``"PYROMETA:tag,tag"`` are short for
    one section with ``name``, or ``all``; a location behind an @ is its registry.
    """

    name: Text | None = None
    """The entry of this name."""
    prefix: Text | None = None
    """Entries whose names begin so."""
    all: tuple[Text, ...] = ()
    """Addresses with all of these metadata tags."""
    any: tuple[Text, ...] = ()
    """Addresses with one of these at least."""
    registry: Text | None = None
    """``HOST:PORT`` of a name server, or ``etcd:URL``. Default: that of the file."""
    interval: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 10.0
    """Seconds between two looks into a name server that cannot tell what changes: a stock one."""
    max_backends: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    """Addresses taken; more are passed over."""
    max_in_flight: Count | None = None
    """Calls that each of them gets at once. Without: no limit."""


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[[services]]``"""

    name: Text
    backends: tuple[BackendConfig, ...] = ()
    discover: tuple[DiscoverConfig, ...] = ()
    """Backends that a registry tells of, as long as it does."""
    listeners: Literal["none", "one", "all"] = "none"
    """Whether clients may ``register(topic, listener)``, and who of a topic gets a blob."""
    match: Text | None = None
    """Exact topic, a prefix followed by ``*``, or a glob. Default: the name."""
    objects: tuple[Text, ...] = ()
    """Transparent mode: clients that ask for one of these object ids (or prefixes, or globs) are led to a backend."""
    stateless: bool = False
    """Transparent mode: each call may go to another backend."""
    policy: str = LEAST_OF_TWO
    """``least-of-two`` (in flight, for their weight), ``round-robin`` or ``hash`` (by key)."""
    prefer: tuple[Text, ...] = ()
    """Tags: backends with the first are taken while any has room, then those with the second, then the rest."""
    slow_start: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0
    """Seconds in which a backend that came back gets from a tenth of its weight to the whole."""
    max_in_flight: Count | None = None
    """Calls that run at once in all its backends. Without: no limit."""
    client_max_in_flight: Count | None = None
    """Calls of one client that run at once. Without: no limit."""
    max_queue: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 100
    """Calls that wait for a backend; beyond it calls are refused at once."""
    queue_timeout: Seconds = 5.0
    """Seconds that a call waits before it is refused."""
    answer_timeout: Seconds | None = None
    """Seconds that a backend may take before its answer begins; then the call is Unknown. Without: no limit."""
    eject_after: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 5
    """Calls in a row that fail before a backend is left out for a while; 0 leaves none out. 5 as in Envoy."""
    eject_for: Seconds = 30.0
    """Seconds for which it is left out at first; n times as long the n-th time in a row. 30 as in Envoy ..."""
    eject_at_most: Seconds = 300.0
    """... and so is 300, the longest time."""
    fair_by: Literal["host", "connection"] = "host"
    """What counts as one client, for its limit and for taking turns."""
    idempotent: tuple[Text, ...] = ()
    """Methods that may run twice, or ``*``: their calls are repeated when their backend is lost."""
    method: Text | None = None
    """What is called on the backends. Default: the method the client called."""
    methods: tuple[Text, ...] = ()
    """Names shown to clients in addition to the dispatcher's."""

    @property
    def pattern(self) -> str:
        """The pattern that leads to this service."""
        return self.name if self.match is None else self.match


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    services: tuple[ServiceConfig, ...]
    listen: Text = "localhost:9095"
    """``HOST:PORT``; port 0 takes a free one."""
    insecure: bool = False
    """Allow listening beyond loopback without TLS and a proof of who the clients are."""
    tls_cert: Text | None = None
    """Speak TLS to clients, with this certificate (a PEM file)."""
    tls_key: Text | None = None
    """Its private key, if that is in another file."""
    tls_ca: Text | None = None
    """Let in only clients with a certificate of these CAs."""
    token_file: Text | None = None
    """Let in only clients with one of these tokens: a name and a token a line."""
    backend_tls: bool = False
    """Speak TLS to back ends and the name server; the next two imply it."""
    backend_tls_ca: Text | None = None
    """CAs to trust there, instead of the system's."""
    backend_tls_cert: Text | None = None
    """Certificate to show there."""
    backend_tls_key: Text | None = None
    """Its private key, if that is in another file."""
    backend_token_file: Text | None = None
    """File with the token to prove there."""
    object: Text = "pyroxfer.dispatcher"
    """The object id under which clients find the dispatcher."""
    methods: tuple[Text, ...] = DEFAULT_METHODS
    """Names clients may call. Stock proxies refuse every other name by themselves."""
    oneway: tuple[Text, ...] = ()
    """Those of the names which clients call without waiting for an answer."""
    default: Text | None = None
    """The service for clients that do not say which object they want (Pyro4 without metadata)."""
    register: Text | None = None
    """A name to register in the name server while running."""
    nameserver: Text | None = None
    """``HOST:PORT`` of the name server. Default: where Pyro looks for it."""
    registry: Text | None = None
    """Where backends are discovered: ``HOST:PORT`` of a name server, or ``etcd:URL``. Default: ``nameserver``."""
    connect_timeout: Seconds = 10.0
    """Seconds for reaching a backend, handshake included."""
    control: Text | None = None
    """Path of the control socket, which only the user of the dispatcher may use."""
    admin: Text | None = None
    """``HOST:PORT`` of health probes, metrics and the status page."""
    access_log: Text | None = None
    """Path of a file to which each call adds one line of JSON."""
    health_interval: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0
    """Seconds between two checks of every backend by a ping; 0 checks none."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    """Seconds that clients may stay which cannot be told to leave; then they are cut between calls."""
    stall_timeout: Seconds = 30.0
    """Seconds without progress after which a large message in passage is given up."""
    busy_poll: Annotated[float, msgspec.Meta(ge=0, le=0.01)] = 0.0002
    """Seconds for which the next message is looked for without sleeping, where one client calls alone; 0 never."""

    @property
    def speaks_tls_to_backends(self) -> bool:
        """Whether back ends are spoken to under TLS."""
        return self.backend_tls or self.backend_tls_ca is not None or self.backend_tls_cert is not None

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The dispatcher's names and those of its services, sorted."""
        names = {*self.methods, *(name for service in self.services for name in service.methods)}
        if any(service.listeners != "none" for service in self.services):
            names |= {*HERE}
        return tuple(sorted(names))

    @property
    def location(self) -> Uri:
        """``listen`` as a place."""
        return Uri(f"PYRO:{self.object}@{self.listen}")

    @property
    def admin_place(self) -> Uri | None:
        """``admin`` as a place."""
        return None if self.admin is None else Uri(f"PYRO:admin@{self.admin}")

    @property
    def nameserver_place(self) -> Uri | None:
        """``nameserver`` as a place."""
        return None if self.nameserver is None else Uri(f"PYRO:Pyro.NameServer@{self.nameserver}")


@cache
def _single_keys() -> dict[str, Any]:
    """Keys that the environment may have, with their types."""
    return {field.name: field.type for field in msgspec.structs.fields(Config) if field.name != "services"}


def load_config(path: str | Path, *, insecure: bool = False, environ: Mapping[str, str] = _NOTHING) -> Config:
    """Read and check a configuration file.

    Args:
        insecure: as ``insecure = true`` in the file.
        environ: variables that go before the file, such as `os.environ`; by default none do.

    Raises:
        FileNotFoundError, PermissionError, OSError: the file cannot be read.
        ConfigError: it is not TOML, or says something unusable; every problem is listed.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_CONFIG_BYTES} bytes"])
    try:
        return parse_config(data.decode(), insecure=insecure, environ=environ)
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}"]) from None


def parse_config(text: str, *, insecure: bool = False, environ: Mapping[str, str] = _NOTHING) -> Config:
    """Check the text of a configuration file; see `load_config`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"not TOML: {error}"]) from None
    except RecursionError:
        raise ConfigError(["nested too deeply"]) from None
    within = f"{TABLE}." if "services" not in table and isinstance(table.get(TABLE), dict) else ""
    table = table[TABLE] if within else table
    variables = overridden(environ)
    for key, variable in variables.items():
        table[key] = value_of(environ[variable], _single_keys()[key])
    if insecure:
        table["insecure"] = True
    problems: list[str] = []
    config = _build(Config, table, "", problems)
    if config is not None:
        problems.extend(_problems_of(config))
    problems = [*unknown_in(environ, _single_keys()), *(within + problem for problem in problems)]
    if config is None or problems:
        raise ConfigError(problems, text, variables)
    return config


def overridden(environ: Mapping[str, str]) -> dict[str, str]:
    """Keys of the file in whose place variables stand, with those."""
    return variables_in(environ, _single_keys())


def check_config(config: Config) -> None:
    """Refuse values that do not go together, wherever they come from.

    Raises:
        ConfigError: every problem is listed.
    """
    problems = list(_problems_of(config))
    if problems:
        raise ConfigError(problems)


Table = TypeVar("Table", bound=msgspec.Struct)
Value = TypeVar("Value")


@cache
def _fields_of(kind: type[msgspec.Struct]) -> Mapping[str, Any]:
    """Found once: msgspec evaluates every annotation anew, which was most of the time a thousand services took."""
    return MappingProxyType({field.name: field for field in msgspec.structs.fields(kind)})


def _build(kind: type[Table], table: object, path: str, problems: list[str]) -> Table | None:
    """A struct from a table; None, and at least one problem, when it cannot be made."""
    if not isinstance(table, dict):
        problems.append(f"{path}: expected a table")
        return None
    fields = _fields_of(kind)
    before = len(problems)
    problems.extend(_unknown(key, fields, path) for key in table if key not in fields)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(field.type, table[name], _join(path, name), problems)
        elif field.required:
            problems.append(f"{_join(path, name)}: missing")
    return kind(**values) if len(problems) == before else None


def _convert(kind: Any, value: object, path: str, problems: list[str]) -> object:
    inner = get_args(kind)[0] if get_origin(kind) is tuple else None
    if inner is DiscoverConfig and isinstance(value, str):
        try:
            value = [_discover_table(Uri(value))]
        except (PyroError, ValueError) as error:
            problems.append(f"{path}: {error}")
            return None
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
        if not isinstance(value, list):
            problems.append(f"{path}: expected an array of tables")
            return None
        return tuple(_build(inner, item, f"{path}[{index}]", problems) for index, item in enumerate(value))
    try:
        return msgspec.convert(value, kind, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        problems.append(f"{path}: {_not_one_of(value, choices) if choices else _plain(str(error))}")
        return None


def _not_one_of(value: object, choices: Iterable[str]) -> str:
    return f"{value!r:.100} is not known; choose one of: {', '.join(choices)}"


def _discover_table(uri: Uri) -> dict[str, object]:
    """What the short form of a section stands for."""
    if uri.protocol == "PYRO":
        raise ValueError("PYRO names one object, which is no registry's; give PYRONAME or PYROMETA, or use backends")
    table: dict[str, object] = (
        {"name": uri.object} if isinstance(uri.object, str) else {"all": sorted(uri.object - {""})}
    )
    return table if uri.location is None else {**table, "registry": uri.location}


def _from_text(kind: type, value: object) -> object:
    """Uri is the one type here that msgspec does not know."""
    if not isinstance(value, str):
        raise ValueError("Expected `str`")
    try:
        return kind(value)
    except PyroError as error:
        raise ValueError(str(error)) from None


def _plain(text: str) -> str:
    """msgspec's sentence with its own path (``- at `$[1]```) made plain."""
    sentence, _, place = text.partition(" - at `$")
    return sentence + (f" at {place.rstrip('`')}" if place else "")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unknown(key: str, known: Iterable[str], path: str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{_join(path, key)}: unknown key; the nearest known one is {near[0]!r}"


def _problems_of(config: Config) -> Iterator[str]:
    """What cannot be said by types."""
    yield from _check_place(config)
    yield from _check_names(config)
    if not config.services:
        yield "services: at least one is needed"
    yield from _duplicates("services", "name", [service.name for service in config.services])
    yield from _duplicates("services", "match", [service.pattern for service in config.services])
    yield from _check_objects(config)
    for index, service in enumerate(config.services):
        yield from _check_service(service, f"services[{index}]", f"PYRO:{config.object}@{config.listen}")


def _check_place(config: Config) -> Iterator[str]:
    host = yield from _attempt("listen", lambda: _host_of(config.listen))
    guarded = config.tls_cert is not None and (config.tls_ca is not None or config.token_file is not None)
    if host is not None and not config.insecure and not guarded and not is_loopback(host):
        yield (
            f"listen: {host or 'every address'} is beyond this machine and nothing here authenticates or encrypts;"
            " listen on localhost, or say insecure = true, or give tls_cert, and token_file or tls_ca"
        )
    if config.tls_cert is None and (config.tls_key is not None or config.tls_ca is not None):
        yield "tls_cert: missing; tls_key and tls_ca need it"
    if config.backend_tls_cert is None and config.backend_tls_key is not None:
        yield "backend_tls_cert: missing; backend_tls_key needs it"
    if config.admin is not None:
        host = yield from _attempt("admin", lambda: _host_of(str(config.admin)))
        if host is not None and not config.insecure and not is_loopback(host):
            yield (
                f"admin: {host or 'every address'} is beyond this machine, and whoever reaches it can drain backends;"
                " use localhost, or say insecure = true"
            )
    if config.control is not None and len(config.control.encode()) > MAX_SOCKET_PATH:
        yield f"control: the path of a socket has at most {MAX_SOCKET_PATH} bytes, and this one more"
    if config.nameserver is not None:
        yield from _attempt("nameserver", lambda: _host_of(str(config.nameserver)))
    yield from _check_registry("registry", config.registry)


def _check_registry(path: str, place: str | None) -> Iterator[str]:
    if place is not None and place.startswith(ETCD):
        yield from _attempt(path, lambda: open_registry(place))  # nothing is connected
    elif place is not None:
        yield from _attempt(path, lambda: _host_of(place))


def _attempt(path: str, check: Callable[[], Value]) -> Generator[str, None, Value | None]:
    """Yield the problem that ``check`` raises; return what it returns."""
    try:
        return check()
    except (PyroError, ValueError) as error:
        yield f"{path}: {error}"
        return None


def _host_of(location: str) -> str:
    place = Uri(f"PYRO:x@{location}")
    if place.sockname is not None:
        raise ValueError(f"expected HOST:PORT, not {location!r}")
    return place.host or ""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine only; names other than localhost are not trusted to be."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_names(config: Config) -> Iterator[str]:
    if not _OBJECT.fullmatch(config.object):
        yield f"object: {config.object!r} has blanks or an @"
    for index, name in enumerate(config.methods):
        yield from _check_method(name, f"methods[{index}]")
    if not config.all_methods:
        yield "methods: at least one is needed, or proxies refuse the object"
    for index, name in enumerate(config.oneway):
        if name not in config.all_methods:
            yield f"oneway[{index}]: {name!r} is not one of the methods"


def _check_objects(config: Config) -> Iterator[str]:
    """Each object leads to one service, and none is the dispatcher's own."""
    taken: dict[str, str] = {}
    for number, service in enumerate(config.services):
        for index, pattern in enumerate(service.objects):
            path = f"services[{number}].objects[{index}]"
            if pattern == config.object:
                yield f"{path}: {pattern!r} is the dispatcher's own object"
            elif pattern in taken:
                yield f"{path}: {pattern!r} is taken by {taken[pattern]}"
            taken.setdefault(pattern, path)
    names = [service.name for service in config.services]
    if config.default is not None and config.default not in names:
        near = difflib.get_close_matches(config.default, names, n=1, cutoff=0.0)
        yield f"default: no service {config.default!r}" + (f"; the nearest one is {near[0]!r}" if near else "")


def _check_method(name: str, path: str) -> Iterator[str]:
    if not _METHOD.fullmatch(name):
        yield f"{path}: {name!r} is not the name of a public method"


def _check_service(service: ServiceConfig, path: str, own_uri: str) -> Iterator[str]:
    yield from _attempt(f"{path}.match", lambda: check_pattern(service.pattern))
    if service.policy not in POLICIES:
        yield f"{path}.policy: {_not_one_of(service.policy, POLICIES)}"
    if service.method is not None:
        yield from _check_method(service.method, f"{path}.method")
    for index, name in enumerate(service.methods):
        yield from _check_method(name, f"{path}.methods[{index}]")
    if service.eject_at_most < service.eject_for:
        yield f"{path}.eject_at_most: {service.eject_at_most:g} s is shorter than eject_for, {service.eject_for:g} s"
    tags = {tag for backend in service.backends for tag in backend.tags}
    for index, tag in enumerate(service.prefer):
        if tag not in tags and not service.discover:
            yield f"{path}.prefer[{index}]: no backend of the service has the tag {tag!r}"
    for key in ("backends", "discover") if service.listeners != "none" else ():
        if getattr(service, key):
            yield f"{path}.{key}: its listeners are its backends; give them a service of their own"
    if service.listeners == "none" and not service.backends and not service.discover:
        yield f"{path}.backends: at least one is needed, or a section in discover"
    for index, section in enumerate(service.discover):
        yield from _check_discover(section, f"{path}.discover[{index}]")
    yield from _duplicates(f"{path}.backends", "name", [backend.name for backend in service.backends])
    yield from _duplicates(f"{path}.backends", "uri", [str(backend.uri) for backend in service.backends])
    for index, backend in enumerate(service.backends):
        if backend.uri.protocol == "PYROMETA":
            yield f"{path}.backends[{index}].uri: PYROMETA names a set; give PYRO or PYRONAME"
        elif str(backend.uri) == own_uri:
            yield f"{path}.backends[{index}].uri: this is the dispatcher itself"


def _check_discover(section: DiscoverConfig, path: str) -> Iterator[str]:
    if section.name is None and section.prefix is None and not section.all and not section.any:
        yield f"{path}: nothing is asked for; give name, prefix, all or any"
    if section.name is not None and section.prefix is not None:
        yield f"{path}.prefix: name says all of it; give one of them"
    yield from _check_registry(f"{path}.registry", section.registry)


def _duplicates(path: str, key: str, values: list[str]) -> Iterator[str]:
    places: dict[str, int] = {}
    for index, value in enumerate(values):
        first = places.setdefault(value, index)
        if first != index:
            yield f"{path}[{index}].{key}: {value!r} is taken by {path}[{first}]"
