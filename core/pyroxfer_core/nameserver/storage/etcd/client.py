"""etcd's HTTP/JSON API on trio: requests that go to whichever member answers, tokens, and streams of events.

Keys and values are base64 in it, and integers are texts, left out when they are 0.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import httpx2
import trio

from ....errors import NamingError
from .place import EtcdPlace

REQUEST_S: Final = 2.0
"""How long one member may take for one answer."""
SLACK_S: Final = 0.5
"""By how much the HTTP client's own limit is to come first."""
PAUSE_S: Final = 0.1
"""Before every member is tried once more."""
MAX_LINE: Final = 64 * 1024 * 1024
"""Bytes of one line of a watch: one change of many entries."""

Json = dict[str, Any]


class EtcdDownError(NamingError):
    """No member answered in time. ``began`` is whether one of them may have done what was asked."""

    def __init__(self, text: str, began: bool = False) -> None:
        super().__init__(text)
        self.began = began


class EtcdRefusedError(NamingError):
    """The cluster answered, with an error."""


class CompactedError(NamingError):
    """The revision asked for is not kept any more."""


class EtcdClient:
    """Speaks to one cluster. Use it in one trio run; close it at the end."""

    def __init__(self, place: EtcdPlace) -> None:
        self.place = place
        verify = place.tls() if place.endpoints[0].startswith("https:") else False
        self._http = httpx2.AsyncClient(
            verify=verify,
            timeout=REQUEST_S,
            trust_env=False,
            headers={"Grpc-Metadata-hasleader": "true"},  # a member that lost its leader shall say so at once
            limits=httpx2.Limits(max_connections=64, max_keepalive_connections=16),
        )
        self._member = 0
        self._token: str | None = None
        self._logging_in = trio.Lock()

    @property
    def member(self) -> int:
        """The member that is asked next, by its place among the endpoints: the one that answered last."""
        return self._member

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(self, path: str, body: Json, patience_s: float) -> Json:
        """One request, repeated on the next member when one does not answer, for at most so long.

        Raises:
            EtcdDownError: nobody answered; with ``began`` it may have been carried out.
            EtcdRefusedError: the answer is an error.
        """
        began, why = False, "no answer"
        with trio.move_on_after(patience_s):
            while True:
                for _ in self.place.endpoints:
                    try:
                        return await self._call_member(path, body)
                    except _NotReachedError as error:
                        why = str(error)
                    except _NoAnswerError as error:
                        why, began = str(error), True
                await trio.sleep(PAUSE_S)
        raise EtcdDownError(f"cannot reach etcd at {self.place}: {why}", began)

    async def call_once(self, path: str, body: Json) -> Json:
        """One request that must not be repeated blindly; the next one goes to the next member if it fails.

        Raises: as `call`.
        """
        try:
            return await self._call_member(path, body)
        except (_NotReachedError, _NoAnswerError) as error:
            raise EtcdDownError(
                f"cannot reach etcd at {self.place}: {error}", isinstance(error, _NoAnswerError)
            ) from error

    async def watch(self, start: bytes, end: bytes, revision: int) -> AsyncGenerator[Json, None]:
        """Batches of events from a revision on, from one member, until its connection ends.

        Raises:
            CompactedError: the revision is too old.
            EtcdDownError: the connection cannot be had, or ended.
        """
        body = {"create_request": {"key": b64(start), "range_end": b64(end), "start_revision": str(revision)}}
        timeout = httpx2.Timeout(REQUEST_S, read=None)
        number = self._member
        member = self.place.endpoints[number]
        try:
            headers = await self._authorization()
            async with (
                self._http.stream(
                    "POST", f"{member}/v3/watch", json=body, headers=headers, timeout=timeout
                ) as answer,
                aclosing(_lines(answer)) as lines,
            ):
                async for line in lines:
                    yield _watch_result(line)
        except _BadTokenError as error:
            self._token = None
            raise EtcdDownError(f"{member}: {error}") from error
        except (httpx2.HTTPError, _NotReachedError, _NoAnswerError) as error:
            raise EtcdDownError(f"lost the watch on {member}: {_reason(error)}") from error
        finally:
            self._leave(number)
        raise EtcdDownError(f"{member} ended the watch")

    async def _call_member(self, path: str, body: Json) -> Json:
        number = self._member
        try:
            try:
                return await self._post(path, body, await self._authorization())
            except _BadTokenError:
                self._token = None
                return await self._post(path, body, await self._authorization())
        except (_NotReachedError, _NoAnswerError):
            self._leave(number)
            raise

    def _leave(self, number: int) -> None:
        """Ask the next member from now on, unless another request has found that out already."""
        if self._member == number:
            self._member = (number + 1) % len(self.place.endpoints)

    async def _authorization(self) -> dict[str, str]:
        if self.place.user is None:
            return {}
        if self._token is None:
            async with self._logging_in:
                if self._token is None:
                    login = {"name": self.place.user, "password": self.place.password()}
                    self._token = str((await self._post("/v3/auth/authenticate", login, {}))["token"])
        return {"Authorization": self._token}

    async def _post(self, path: str, body: Json, headers: dict[str, str]) -> Json:
        """One request to the present member. Cancelling waits for it, for the REQUEST_S it may take: what is cut off
        in a TLS handshake would leave its socket open."""
        member = self.place.endpoints[self._member]
        try:
            with trio.fail_after(REQUEST_S + SLACK_S, shield=True):
                answer = await self._http.post(member + path, json=body, headers=headers)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            if isinstance(_cause(error), ssl.SSLCertVerificationError):  # it will not get better by itself
                raise EtcdRefusedError(f"cannot trust etcd at {member}: {_reason(error)}; give cacert=") from error
            raise _NotReachedError(f"{member}: {_reason(error)}") from error
        except (httpx2.HTTPError, trio.TooSlowError) as error:
            raise _NoAnswerError(f"{member}: {_reason(error)}") from error
        return _checked(member, answer)


class _NotReachedError(Exception):
    """This member cannot have seen the request."""


class _NoAnswerError(Exception):
    """This member may have carried the request out."""


class _BadTokenError(Exception):
    """The login has expired."""


def _checked(member: str, answer: httpx2.Response) -> Json:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if answer.status_code == 200 and isinstance(found, dict):
        return found
    text = (
        str(found.get("message") or found.get("error"))
        if isinstance(found, dict)
        else f"no JSON: {answer.text[:100]!r}"
    )
    if answer.status_code == 401 or "invalid auth token" in text:
        raise _BadTokenError(text) if "token" in text else EtcdRefusedError(f"etcd refused the login: {text}")
    if answer.status_code in (408, 429, 500, 502, 503, 504):
        raise _NoAnswerError(f"{member}: {text}")
    raise EtcdRefusedError(f"etcd refused: {text}")


async def _lines(answer: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, in bounded memory."""
    if answer.status_code != 200:
        await answer.aread()
        _checked(str(answer.url), answer)
    rest = b""
    async for piece in answer.aiter_raw():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > MAX_LINE:
            raise EtcdRefusedError(f"etcd sent an event of more than {MAX_LINE} bytes")


def _watch_result(line: bytes) -> Json:
    try:
        found = json.loads(line)
        result: Json = found.get("result") or {}
        failed = found.get("error")
    except (ValueError, AttributeError):
        raise _NoAnswerError("no JSON in the watch") from None
    if failed:
        raise _NoAnswerError(str(failed.get("message", failed) if isinstance(failed, dict) else failed))
    if compacted := int(result.get("compact_revision", 0)):
        raise CompactedError(f"etcd keeps no revision before {compacted}")
    if result.get("canceled"):
        raise _NoAnswerError(str(result.get("cancel_reason") or "the watch was cancelled"))
    return result


def _reason(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {REQUEST_S:g} s"
    return str(error) or str(_cause(error)) or type(error).__name__


def _cause(error: BaseException) -> BaseException:
    """What an error came from: those of the HTTP client often have no text themselves."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def b64(data: bytes) -> str:
    """As the API carries bytes."""
    return base64.b64encode(data).decode("ascii")


def from_b64(text: str) -> bytes:
    """The bytes again."""
    return base64.b64decode(text)
