"""A daemon: its protocols, serializers and keys, the object, the side stream, and how fast it answers."""

from __future__ import annotations

import secrets
import statistics
from typing import Final

import trio

from ...client.proxy import Proxy
from ...errors import AuthenticationError, CommunicationError, PyroError
from ...objects.table import DAEMON_ID
from ...settings import SAFE_SERIALIZERS, Settings
from ...transport.side import open_side_stream
from ...uri import Uri
from .._run import ExitCode, exit_code_of
from .findings import Report
from .place import first_bytes, what_speaks

PINGS: Final = 20
BLOCK: Final = 1024 * 1024
BLOCKS: Final = 16
"""Sent as annotations of calls, to see how fast bytes go."""
SLOW_MS: Final = 100.0
"""A round trip that is worth a remark."""
HANDSHAKE_S: Final = 5.0


async def look_at_peer(report: Report, uri: Uri, settings: Settings) -> None:
    """Everything about the daemon at an address that accepts connections."""
    settings = settings.with_changes(connect_timeout_s=HANDSHAKE_S)
    working = await _protocols(report, uri, settings)
    if working is None:
        return
    settings = working
    await _serializers(report, uri, settings)
    await _object(report, uri, settings)
    await _speed(report, uri, settings)
    await _side_stream(report, uri, settings)


async def _protocols(report: Report, uri: Uri, settings: Settings) -> Settings | None:
    """Settings with which a handshake works, in the better protocol; None when none does."""
    found: list[Settings] = []
    failures: list[PyroError] = []
    for version in (48,) if settings.hmac_key is not None else (502, 48):
        for serializer in (None, "json", "msgpack", "marshal"):
            tried = settings.with_changes(protocol=version, serializer=serializer)
            proxy = Proxy(_daemon_of(uri), settings=tried)
            try:
                await proxy._pyroBind()
                found.append(tried)
                break
            except PyroError as error:
                failures.append(error)
                if "serializer" not in str(error):
                    break
            finally:
                proxy._pyroRelease()
    if not found:
        await _say_silence(report, uri, failures, tls=settings.ssl_client_context is not None)
        return None
    names = " and ".join(f"{one.protocol} ({'Pyro5' if one.protocol == 502 else 'Pyro4'})" for one in found)
    report.ok("protocol", f"it speaks {names}")
    return found[0]


async def _say_silence(report: Report, uri: Uri, failures: list[PyroError], *, tls: bool) -> None:
    """No handshake worked: why not."""
    for error in failures:
        text = str(error)
        if isinstance(error, AuthenticationError):
            report.problem("access", text, _access_advice(text), ExitCode.REFUSED)
            return
        if any(word in text.lower() for word in ("hmac", "signature", "signed")):
            advice = "give the same HMAC key at both ends (--hmac-key-file FILE), or none"
            report.problem("HMAC key", text, advice, ExitCode.REFUSED)
            return
        if "rejected" in text:
            report.problem("access", text, "the daemon says why; ask whoever runs it", ExitCode.REFUSED)
            return
    what, advice = what_speaks(await first_bytes(uri), tls=tls)
    report.problem("protocol", f"{uri.location} is {what}", advice, ExitCode.PROTOCOL)


def _access_advice(text: str) -> str:
    if "TLS" in text:
        return "TLS: what the message says; both clocks must be right, too"
    return "give the token of a user who may come in (PYROXFER_TOKEN, or --token-file FILE)"


async def _serializers(report: Report, uri: Uri, settings: Settings) -> None:
    accepted = []
    for name in sorted(SAFE_SERIALIZERS):
        proxy = Proxy(_daemon_of(uri), settings=settings.with_changes(serializer=name))
        try:
            await proxy.ping()
            accepted.append(name)
        except PyroError:
            pass
        finally:
            proxy._pyroRelease()
    if "serpent" in accepted:
        report.ok("serializers", f"it accepts {', '.join(accepted)}")
        return
    report.problem(
        "serializers",
        f"it does not accept serpent, the default, but {', '.join(accepted) or 'none that is safe'}",
        f"choose one that it accepts (Settings(serializer={accepted[0]!r}))" if accepted else
        "have the daemon accept serpent, json, marshal or msgpack: pickle is not spoken here",
        ExitCode.PROTOCOL,
    )  # fmt: skip


async def _object(report: Report, uri: Uri, settings: Settings) -> None:
    if uri.object == DAEMON_ID:
        return
    proxy = Proxy(uri, settings=settings)
    try:
        await proxy._pyroBind()
        meta = proxy._pyroMetadata
        if meta is None:
            report.ok("object", f"{uri.object} is there")
        else:
            report.ok("object", f"{uri.object} has {len(meta.methods)} methods and {len(meta.attrs)} attributes")
    except PyroError as error:
        known = await _known_objects(uri, settings)
        shown = ", ".join(known[:10]) or "none"
        report.problem(
            "object", f"{uri.object}: {error}", f"use the id of an object that is registered there: {shown}",
            ExitCode.NOT_FOUND,
        )  # fmt: skip
    finally:
        proxy._pyroRelease()


async def _known_objects(uri: Uri, settings: Settings) -> list[str]:
    try:
        async with Proxy(_daemon_of(uri), settings=settings) as daemon:
            return [str(one) for one in await daemon.registered() if one != DAEMON_ID]
    except PyroError:
        return []


async def _speed(report: Report, uri: Uri, settings: Settings) -> None:
    """Round trips of a call that does nothing, and bytes sent along with it, where annotations may be large."""
    try:
        async with Proxy(_daemon_of(uri), settings=settings) as daemon:
            times = []
            for _ in range(PINGS):
                began = trio.current_time()
                await daemon.ping()
                times.append((trio.current_time() - began) * 1000)
            median, worst = statistics.median(times), max(times)
            text = f"a call takes {median:.2f} ms, at most {worst:.2f} ms of {PINGS}"
            if median > SLOW_MS:
                report.warn("round trip", text, "the way is long: send several calls at once, or a batch")
            else:
                report.ok("round trip", text)
            if settings.protocol == 502:
                began = trio.current_time()
                for _ in range(BLOCKS):
                    await daemon.ping.options(annotations={"DOCT": bytes(BLOCK)})()
                seconds = trio.current_time() - began
                report.ok("throughput", f"{BLOCK * BLOCKS / seconds / 1e6:.0f} MB/s towards it, in calls of 1 MiB")
    except CommunicationError as error:
        advice = "the connection broke under load: look for a limit on message sizes, an MTU or a proxy on the way"
        report.problem("throughput", str(error), advice, exit_code_of(error))


async def _side_stream(report: Report, uri: Uri, settings: Settings) -> None:
    """Whether raw streams reach a daemon of ours: it closes one whose token it does not know."""
    async with Proxy(_daemon_of(uri), settings=settings) as daemon:
        await daemon._pyroBind()
        link = daemon._pyroLink
        if link is None or not link.grant.bits:
            return
    try:
        with trio.fail_after(HANDSHAKE_S):
            stream = await open_side_stream(uri, secrets.token_bytes(16), settings=settings)
            try:
                await stream.receive_some()
            except PyroError:
                pass  # closed, which is the answer
            finally:
                await stream.aclose()
    except (PyroError, trio.TooSlowError) as error:
        report.warn(
            "raw side stream",
            f"a second connection for raw bytes does not get through ({error or 'no answer'})",
            "allow more than one connection on the port; until then files go through messages (--channel annot)",
        )
    else:
        report.ok("raw side stream", "a second connection for raw bytes gets through")


def _daemon_of(uri: Uri) -> Uri:
    return Uri(f"PYRO:{DAEMON_ID}@{uri.location}")
