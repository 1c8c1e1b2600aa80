"""What an object store said, as the errors of this package: one line that says what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from obstore import exceptions as said

from ..errors import (
    AddressError,
    DeniedError,
    ExistsError,
    LostError,
    NameRefusedError,
    NoSpaceError,
    NotFoundError,
    SourceChangedError,
    TransferError,
    from_os_error,
)
from ..names import printable

_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_FULL: Final = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull"})
_CREDENTIALS: Final = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and what they allow"
_METADATA_SERVICE: Final = ("169.254.169.254", "169.254.170.2")


@contextlib.contextmanager
def translated(bucket: str, path: str) -> Iterator[None]:
    """Turn what the object store says inside the block into the error of this package that names ``path``."""
    try:
        yield
    except (said.BaseError, FileNotFoundError) as error:
        raise _translate(error, bucket, printable(path) or "the bucket served") from error
    except OSError as error:
        raise from_os_error(error, printable(path) or "the spool folder") from error


def _translate(error: Exception, bucket: str, path: str) -> TransferError:
    text = str(error)
    code, status = _first(_CODE, text), _first(_STATUS, text)
    if code == "NoSuchBucket":
        return NotFoundError(f"s3://{bucket}: there is no such bucket; make it, or name another")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path}: no such file or folder")
    if isinstance(error, said.AlreadyExistsError):
        return ExistsError(f"{path}: already exists")
    if isinstance(error, said.PreconditionError):
        return SourceChangedError(f"{path}: was replaced while it was being read; ask again")
    if isinstance(error, said.InvalidPathError):
        return NameRefusedError(f"{path}: the object store does not take this name")
    if any(place in text for place in _METADATA_SERVICE):
        return DeniedError(
            f"s3://{bucket}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    denied = isinstance(error, (said.PermissionDeniedError, said.UnauthenticatedError))
    if denied or status in ("401", "403"):
        return DeniedError(f"{path}: the object store refuses ({code or 'forbidden'}); {_CREDENTIALS}")
    if code in _FULL or status == "507":
        return NoSpaceError(f"{path}: the object store is full, or the quota used up")
    return _translate_transport(text, bucket, path, code or status)


def _translate_transport(text: str, bucket: str, path: str, answer: str) -> TransferError:
    """Errors for which the library has no class of its own."""
    if "builder error" in text:
        return AddressError(
            f"s3://{bucket}: the endpoint cannot be used; AWS_ENDPOINT_URL must be an https:// address,"
            " or an http:// one with AWS_ALLOW_HTTP=true"
        )
    if answer == "SlowDown" or "HTTP error" in text or answer.startswith("5"):
        return LostError(
            f"{path}: the object store does not answer{_in_brackets(answer)};"
            " check AWS_ENDPOINT_URL, AWS_REGION and the network, and try again"
        )
    return TransferError(f"{path}: the object store failed: {answer or printable(text.splitlines()[0])[:300]}")


def _in_brackets(answer: str) -> str:
    return f" ({answer})" if answer else ""


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
