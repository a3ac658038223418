"""The authority: what it signs is known as its own, within its time, and nothing else is."""

from __future__ import annotations

import pytest

from p2pnn.errors import NotAllowedError, StorageError
from p2pnn.identity.authority import DAY_S, SKEW_S, VALID_S, Authority, Certificate
from p2pnn.identity.keys import NodeKey

NOW = 1_800_000_000.0


def test_what_it_issues_is_its_own() -> None:
    authority, key = Authority.found(NOW), NodeKey.generate().public
    certificate = authority.issue(key, NOW)
    certificate.check_issued_by(authority.certificate, NOW)
    assert certificate.key == key


def test_what_another_issued_is_of_the_wrong_cluster() -> None:
    certificate = Authority.found(NOW).issue(NodeKey.generate().public, NOW)
    with pytest.raises(NotAllowedError, match="wrong cluster"):
        certificate.check_issued_by(Authority.found(NOW).certificate, NOW)


@pytest.mark.parametrize(("late_s", "says"), [(-SKEW_S - 1, "2027-01-14"), (VALID_S + 1, "2028-01-15")])
def test_outside_its_time_the_clock_is_named(late_s: float, says: str) -> None:
    authority = Authority.found(NOW)
    certificate = authority.issue(NodeKey.generate().public, NOW)
    with pytest.raises(NotAllowedError, match=f"clock says {says}"):
        certificate.check_issued_by(authority.certificate, NOW + late_s)


@pytest.mark.parametrize("late_s", [-SKEW_S + 1, 0, VALID_S - 1])
def test_a_clock_that_is_a_day_late_does_no_harm(late_s: float) -> None:
    authority = Authority.found(NOW)
    authority.issue(NodeKey.generate().public, NOW).check_issued_by(authority.certificate, NOW + late_s)


def test_a_node_cannot_issue() -> None:
    authority, member = Authority.found(NOW), NodeKey.generate()
    certificate = authority.issue(member.public, NOW)
    forged = Authority(certificate, member.private).issue(NodeKey.generate().public, NOW)
    with pytest.raises(NotAllowedError, match="wrong cluster"):
        forged.check_issued_by(authority.certificate, NOW)


def test_it_is_renewed_when_a_third_is_left() -> None:
    certificate = Authority.found(NOW).issue(NodeKey.generate().public, NOW, valid_s=2 * DAY_S)
    assert certificate.renews_s == NOW + DAY_S


def test_the_key_comes_back_from_its_file() -> None:
    authority = Authority.found(NOW)
    again = Authority.load(authority.certificate, authority.pem, "authority.pem")
    again.issue(NodeKey.generate().public, NOW).check_issued_by(authority.certificate, NOW)


def test_the_key_of_another_cluster_is_named() -> None:
    with pytest.raises(StorageError, match=r"authority\.pem holds the key of another cluster"):
        Authority.load(Authority.found(NOW).certificate, Authority.found(NOW).pem, "authority.pem")
    with pytest.raises(StorageError, match=r"authority\.pem holds no key"):
        Authority.load(Authority.found(NOW).certificate, b"garbage", "authority.pem")


def test_certificates_come_back_from_pem_in_order() -> None:
    authority = Authority.found(NOW)
    certificate = authority.issue(NodeKey.generate().public, NOW)
    assert Certificate.load(certificate.pem + authority.certificate.pem) == [certificate, authority.certificate]
    with pytest.raises(NotAllowedError):
        Certificate.load(b"garbage")


@pytest.mark.parametrize("der", [b"", b"garbage", bytes(5000)])
def test_bytes_that_are_no_certificate_are_refused(der: bytes) -> None:
    with pytest.raises(NotAllowedError):
        Certificate(der)
