"""The values of a transfer: they survive the trip, and nothing wrong gets in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import serpent
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer import errors
from pyroxfer.offer import End, FileEntry, Offer, Receipt, Ticket, check_range, check_transfer_id, new_transfer_id

ID = "0123456789abcdef" * 2
DIGEST = "0123456789abcdef" * 4

SAMPLES: list[Any] = [
    Offer("a/b.bin", 5, transfer_id=ID, mtime_ns=-5, digest=DIGEST),
    Offer("pipe", None, "sha256", if_exists="rename", durability="full", transfer_id=ID),
    Ticket(ID, 2**40, "blake3", 1024, "ab" * 90, 0o644, 1),
    Ticket(ID, None, "blake3", 1024, ""),
    End(0, DIGEST),
    Receipt("a/b.bin", 5, DIGEST, "blake3", "data", "iter", "because", 0, ID),
    Receipt("a/b.bin", 5, "", "blake3", "data", "none", "skipped"),
    FileEntry("", "folder"),
    FileEntry("a/b", "file", 2**62, 0o600, 2**60),
]

CARRIERS: dict[str, Any] = {
    "serpent": lambda value: serpent.loads(serpent.dumps(value)),
    "json": lambda value: json.loads(json.dumps(value)),
    "msgpack": lambda value: msgpack.unpackb(msgpack.packb(value)),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_values_survive_every_serializer(sample: Any, carrier: str) -> None:
    assert type(sample).from_dict(CARRIERS[carrier](sample.to_dict())) == sample


FAMILY = sorted(errors._BY_CODE.values(), key=lambda cls: cls.__name__)

PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=70), st.binary(max_size=5), st.just([])
)


@pytest.mark.parametrize("sample", [SAMPLES[0], SAMPLES[2], SAMPLES[4], SAMPLES[5], SAMPLES[8]], ids=repr)
@given(data=st.data())
def test_a_changed_field_is_refused_or_equal_to_a_valid_value(sample: Any, data: st.DataObject) -> None:
    """Whatever stands in a field, the answer is our error or a value that goes round again."""
    record = sample.to_dict()
    record[data.draw(st.sampled_from(sorted(record)))] = data.draw(PLAIN)
    try:
        taken = type(sample).from_dict(record)
    except errors.TransferError:
        return
    assert type(sample).from_dict(taken.to_dict()) == taken


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "../x"),
        ("path", "a/"),
        ("size", -1),
        ("size", 2**63),
        ("size", True),
        ("size", "5"),
        ("algorithm", "md5"),
        ("digest", "AB" * 32),
        ("digest", "ab"),
        ("mode", 0o4755),
        ("if_exists", "destroy"),
        ("durability", ""),
        ("transfer_id", "x" * 32),
        ("transfer_id", "../../../../../../../../../../x1"),
    ],
)
def test_wrong_fields_of_an_offer_are_refused(field: str, value: object) -> None:
    with pytest.raises(errors.TransferError):
        Offer.from_dict({**SAMPLES[0].to_dict(), field: value})


@pytest.mark.parametrize("value", [None, [], "text", 5, {}, {"path": "x"}])
def test_what_is_no_offer_is_a_fault_of_the_peer(value: object) -> None:
    with pytest.raises(errors.PeerError):
        Offer.from_dict(value)


def test_a_digest_is_missing_only_from_a_skipped_receipt() -> None:
    receipt = SAMPLES[5]
    with pytest.raises(errors.PeerError):
        Receipt.from_dict(replace(receipt, digest="").to_dict())


def test_ids_and_ranges_are_checked() -> None:
    assert check_transfer_id(new_transfer_id())
    assert check_range(5, 10, 10) == (5, 10)
    wrong: list[tuple[Any, Any]] = [(-1, 5), (0, 0), (0, 11), ("0", 5), (0, 2.0), (2**63, 1)]
    for offset, length in wrong:
        with pytest.raises(errors.PeerError):
            check_range(offset, length, 10)
    for bad in (None, 5, ID + "00", ID[:-1] + "G"):
        with pytest.raises(errors.PeerError):
            check_transfer_id(bad)


@pytest.mark.parametrize("cls", FAMILY)
def test_an_error_arrives_as_its_own_class(cls: type[errors.TransferError]) -> None:
    arrived = errors.from_record(errors.to_record(cls("what happened")))
    assert type(arrived) is cls
    assert str(arrived) == "what happened"


@pytest.mark.parametrize("record", [None, "x", {}, {"code": 5, "text": "x"}, {"code": "lost"}])
def test_an_unreadable_error_record_is_a_fault_of_the_peer(record: object) -> None:
    assert type(errors.from_record(record)) is errors.PeerError


def test_an_unknown_code_is_still_an_error_with_its_text() -> None:
    arrived = errors.from_record({"code": "from-the-future", "text": "t" * 5000})
    assert type(arrived) is errors.TransferError
    assert len(str(arrived)) == errors.MAX_TEXT


def test_exit_codes_are_those_of_the_documentation() -> None:
    table = {cls.__name__: cls.exit_code for cls in FAMILY}
    assert table == {
        "TransferError": 1,
        "AddressError": 2,
        "NotFoundError": 3,
        "DeniedError": 4,
        "NameRefusedError": 4,
        "LostError": 5,
        "TakenOverError": 5,
        "BusyError": 5,
        "OutcomeUnknownError": 5,
        "IntegrityError": 6,
        "SourceChangedError": 7,
        "NoSpaceError": 8,
        "ExistsError": 9,
        "SomeFilesFailedError": 10,
        "StalledError": 11,
        "PeerError": 12,
        "UnknownTransferError": 5,
    }
