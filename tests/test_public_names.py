"""The public surface, name by name: a change here is a change for users and belongs in the CHANGELOG."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

PUBLIC = {
    "pyroxfer": """
        FileEntry FileServer Planned Progress Receipt errors get ls plan_get plan_send remove send serve stat
        watch Watched
    """,
    "pyroxfer_dispatcher": """
        Dispatcher RouteTable load_config
    """,
    "pyroxfer_core": """
        BatchProxy Connection CutCall Daemon Hello Identity InheritedListener Metadata Proxy SerializedBlob
        ServerSession ServiceManager Settings SideStream StreamSocket Supervisor Tokens Uri Verdict Worker load_token
        accept_handshake authenticate behavior bind_tcp callback configure_logging current_call error_body errors
        expose idempotent inherited_listeners introduce
        keep_registered locate_ns oneway open_connection open_futures open_side_stream resolve serve serve_connections
        plain_call refusal supervise tls_client_context tls_server_context wanted_object worker_count
    """,
    "pyroxfer_core.blocking": """
        BatchProxy CommunicationError ConnectionClosedError Daemon DaemonError DaemonObject Future FutureResult
        NamingError ProtocolError Proxy PyroError SecurityError SerializeError SerializedBlob SerializerBase Settings
        TimeoutError URI asyncproxy batch behavior callback config current_context errors expose idempotent locateNS
        locate_ns oneway register_class_to_dict register_dict_to_class resolve serve startNS startNSloop start_ns
        start_ns_loop type_meta unregister_class_to_dict unregister_dict_to_class
        util
    """,
    "pyroxfer_core.cli": """
        CommandGroup
    """,
    "pyroxfer_core.wire": """
        alive AUTH_KEY begin BLOB_INFO BlobInfo Body BodyPart Codec codec_for DEADLINE_KEY Decoder End
        FEATURES_KEY Feature Flags Grant Head HOP_KEYS hops_of last_read MAX_BODIES MAX_PIECE Message
        MessageType new_offer OUTCOME_KEY overheard Prover read_begin read_blob_info renumber sent_after STOCK
        V48 V502 with_annotation with_hops write_blob_info
    """,
    "pyroxfer_core.errors": """
        AuthenticationError CommunicationError ConnectionClosedError DaemonError MessageTooLargeError NamingError
        Outcome ProtocolError PyroError RefusedError RemoteError SecurityError SerializeError SessionLost TimeoutError
    """,
    "pyroxfer_core.gateway": """
        Gateway GatewayOptions app
    """,
    "pyroxfer_core.gateway.http": """
        HttpServer
    """,
    "pyroxfer_core.nameserver": """
        Address Changes Entry Lease NameServer Query Registration Registry RunningNameServer keep_registered locate_ns
        open_registry read_entries resolve start_ns
    """,
}
PYRO5_API = """
    BatchProxy Daemon DaemonObject Proxy SerializedBlob SerializerBase URI behavior callback config current_context
    expose locate_ns oneway register_class_to_dict register_dict_to_class resolve serve start_ns start_ns_loop
    type_meta unregister_class_to_dict unregister_dict_to_class
"""

PYRO4 = """
    Daemon Future Proxy URI asyncproxy batch behavior callback config current_context errors expose locateNS oneway
    resolve util
"""


def face_of(source: Path) -> list[ast.stmt]:
    """The statements of a package's face, with those that only type checkers read."""
    nodes = ast.parse(source.read_text()).body
    return nodes + [inner for node in nodes if isinstance(node, ast.If) for inner in node.body]


@pytest.mark.parametrize("name", ["pyroxfer", "pyroxfer_core"])
def test_names_that_come_when_used_come_from_where_type_checkers_look(name: str) -> None:
    """Both lists of a lazy face say the same, and an unknown name is told as Python does."""
    module = importlib.import_module(name)
    imports = {
        alias.asname or alias.name: node.module or ""
        for node in face_of(Path(inspect.getfile(module)))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert imports == module._WHERE
    assert set(imports) <= set(dir(module))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_the_version_is_told_without_loading_anything() -> None:
    """Neither the event loop nor the core is imported for a face, or for the version."""
    program = "import sys, pyroxfer, pyroxfer.cli.main; print(sorted({'trio', 'tqdm', 'msgpack'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def shown_by(name: str) -> set[str]:
    """Names a module shows: in a package what its face re-exports or defines, elsewhere its own classes."""
    module = importlib.import_module(name)
    source = Path(inspect.getfile(module))
    if source.name != "__init__.py":
        return {
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == name and not key.startswith("_")
        }
    found: set[str] = set()
    for node in face_of(source):
        if isinstance(node, ast.ImportFrom) and node.module not in ("__future__", "typing"):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {shown for shown in found if not shown.startswith("_")}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name: str) -> None:
    """Nothing is shown by accident and nothing disappears by accident."""
    assert shown_by(name) == set(PUBLIC[name].split())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there_and_documented(name: str) -> None:
    """Every public class and function exists and says what it is."""
    module = importlib.import_module(name)
    for public in PUBLIC[name].split():
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public} has no docstring"


def test_the_facade_has_the_names_of_pyro5() -> None:
    """A program that changes one import finds the names it used."""
    assert set(PYRO5_API.split()) <= shown_by("pyroxfer_core.blocking")


def test_the_facade_has_the_names_of_pyro4() -> None:
    """Those that mean the same: what Pyro4 shows, of its modules those that programs use."""
    assert set(PYRO4.split()) <= shown_by("pyroxfer_core.blocking")
