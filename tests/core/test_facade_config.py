"""``config``: Pyro's names and variables, read late, checked, and turned into settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from pyroxfer_core.blocking import Daemon, Proxy, config
from pyroxfer_core.blocking.config import DEFAULTS, Configuration
from pyroxfer_core.errors import PyroError, SecurityError
from pyroxfer_core.settings import Settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process-wide configuration is as it was afterwards."""
    config.reset()
    yield
    monkeypatch.undo()
    config.reset()


def test_defaults_stand_for_the_default_settings() -> None:
    assert config.settings() == Settings()
    assert (config.SERIALIZER, config.COMMTIMEOUT, config.SERVERTYPE) == ("serpent", 0.0, "thread")


def test_what_is_set_reaches_proxies_and_daemons() -> None:
    """At the moment they are made, as documented."""
    before = Proxy("PYRO:x@localhost:1")
    config.SERIALIZER, config.COMMTIMEOUT, config.MAX_RETRIES = "marshal", 2, 4
    config.COMPRESSION, config.THREADPOOL_SIZE, config.MAX_MESSAGE_SIZE = True, 7, 5000
    after = Proxy("PYRO:x@localhost:1")
    assert (before._pyroSerializer, before._pyroTimeout, before._pyroMaxRetries) == (None, None, 0)
    assert (after._pyroSerializer, after._pyroTimeout, after._pyroMaxRetries) == ("marshal", 2, 4)
    with Daemon() as daemon:
        settings = daemon.settings
        assert (settings.compression, settings.worker_threads, settings.max_message_bytes) == (True, 7, 5000)


def test_serializers_are_the_safe_ones_unless_others_are_named() -> None:
    """Pyro4 programs name pickle here, which alone lets nobody use it; a name nobody knows is left out."""
    assert "pickle" not in config.settings().accepted_serializers
    config.SERIALIZERS_ACCEPTED = {"json", "pickle", "unheard-of"}
    assert config.settings().accepted_serializers == {"json", "pickle"}
    config.SERIALIZER = "unheard-of"
    with pytest.raises(PyroError, match="unknown serializer"):
        config.settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERIALIZER", 5),
        ("SERVERTYPE", "processes"),
        ("NS_PORT", "9090"),
        ("NS_PORT", -1),
        ("THREADPOOL_SIZE", 0),
        ("PREFER_IP_VERSION", 5),
        ("SERIALIZERS_ACCEPTED", "json"),
        ("COMMTIMEOUT", "soon"),
    ],
)
def test_unusable_values_are_refused(name: str, value: object) -> None:
    """At once, by name, and the old value stays."""
    with pytest.raises(ValueError, match=name):
        setattr(config, name, value)
    assert getattr(config, name) == DEFAULTS[name]


def test_unknown_names_are_attribute_errors() -> None:
    """As in Pyro: a typing error must not be silent."""
    with pytest.raises(AttributeError, match="SERIALISER"):
        config.SERIALISER = "json"
    with pytest.raises(AttributeError, match="SERIALISER"):
        _ = config.SERIALISER


def test_the_environment_is_read_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed like the item; blanks in lists do not count."""
    fresh = Configuration()
    for name, text in {
        "PYRO_SERIALIZER": "json",
        "PYRO_COMPRESSION": "Yes",
        "PYRO_NS_PORT": "19090",
        "PYRO_COMMTIMEOUT": "1.5",
        "PYRO_SERIALIZERS_ACCEPTED": "json, marshal ,",
        "PYRO_NATHOST": "outside",
    }.items():
        monkeypatch.setenv(name, text)
    assert fresh.as_dict()["NATHOST"] == "outside"
    settings = fresh.settings()
    assert (settings.serializer, settings.compression, settings.ns_port) == ("json", True, 19090)
    assert settings.call_timeout_s == 1.5
    assert settings.accepted_serializers == {"json", "marshal"}
    fresh.reset(use_environment=False)
    assert fresh.SERIALIZER == "serpent"


def test_unknown_variables_are_one_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Pyro5 refuses to be imported with Pyro4's variables around."""
    caplog.set_level(logging.INFO, "pyroxfer_core.blocking.config")
    monkeypatch.setenv("PYRO_HMAC_KEY", "secret")
    monkeypatch.setenv("PYRO_SOCK_NODELAY", "true")
    fresh = Configuration()
    assert fresh.SOCK_NODELAY is True
    assert fresh.SERIALIZER == "serpent"
    (record,) = caplog.records
    assert record.getMessage().endswith("PYRO_HMAC_KEY, PYRO_SOCK_NODELAY")
    assert "secret" not in caplog.text


def test_unusable_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the value, so that it can be found."""
    monkeypatch.setenv("PYRO_COMPRESSION", "maybe")
    with pytest.raises(ValueError, match="PYRO_COMPRESSION='maybe'"):
        _ = Configuration().COMPRESSION


def test_what_protects_is_not_ignored() -> None:
    """A program that asks for TLS must not talk in clear without noticing."""
    config.SSL = True
    with pytest.raises(SecurityError, match="SSL_SERVERCERT"):
        Daemon()
    config.SSL_SERVERCERT = "/no/such/file"
    with pytest.raises(SecurityError, match="cannot read /no/such/file"):
        Proxy("PYRO:x@localhost:1")


def test_passwords_are_not_printed() -> None:
    """What is printed for people ends up in logs."""
    config.SSL_SERVERKEYPASSWD = "tr0ub4dor"
    assert "tr0ub4dor" not in config.dump()


def test_copies_are_independent() -> None:
    """And everything can be printed."""
    copy = config.copy()
    copy.SERIALIZER = "json"
    assert (config.SERIALIZER, copy.SERIALIZER) == ("serpent", "json")
    assert config.settings().serializer is None
    assert "SERIALIZER = 'json'" in copy.dump()
    assert set(dir(copy)) >= set(DEFAULTS)
