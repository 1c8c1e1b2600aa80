"""Certificates made for the tests: two authorities, and what they signed, as files."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import trustme

from pyroxfer_core import Settings, tls_client_context, tls_server_context

HOSTS = ("localhost", "127.0.0.1", "::1")


class Certificates:
    """Files of one folder; each certificate stands in one file with its key."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        authority, other = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        other.cert_pem.write_to_path(self.other_ca)
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        self.server = self._write(folder, "server", authority.issue_cert(*HOSTS))
        self.elsewhere = self._write(folder, "elsewhere", authority.issue_cert("elsewhere.example"))
        self.expired = self._write(folder, "expired", authority.issue_cert(*HOSTS, not_after=past))
        self.client = self._write(folder, "client", authority.issue_cert("alice@example", common_name="alice"))
        self.nameless = self._write(folder, "nameless", authority.issue_cert("bob@example.org"))
        self.stranger = self._write(folder, "stranger", other.issue_cert("eve@example", common_name="eve"))

    @staticmethod
    def _write(folder: Path, name: str, leaf: trustme.LeafCert) -> Path:
        path = folder / f"{name}.pem"
        leaf.private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def settings(self, *, mutual: bool = False, **more: object) -> Settings:
        """For both ends: a daemon with the certificate, and a client that trusts it (and shows its own)."""
        return Settings(
            ssl_server_context=self.server_context(mutual=mutual),
            ssl_client_context=self.client_context(mutual=mutual),
        ).with_changes(**more)

    def server_context(self, *, mutual: bool = False) -> ssl.SSLContext:
        return tls_server_context(self.server, ca=self.ca if mutual else None)

    def client_context(self, *, mutual: bool = False) -> ssl.SSLContext:
        return tls_client_context(self.ca, cert=self.client if mutual else None)
