"""OpenSSL's errors in words."""

from __future__ import annotations

import ssl

import pytest

from p2pnn.transport.alerts import CLOCK, UNFIT, WRONG_CLUSTER, words


def told(reason: str) -> str:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:1)")
    error.reason = reason
    return words(error)


@pytest.mark.parametrize(
    ("reason", "clause"),
    [
        ("TLSV1_ALERT_UNKNOWN_CA", WRONG_CLUSTER),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", CLOCK),
        ("SSLV3_ALERT_BAD_CERTIFICATE", UNFIT),
        ("WRONG_VERSION_NUMBER", "no TLS: a plain node, or something that is none, listens there"),
        ("SOMETHING_NEW", "tls: something_new"),
    ],
)
def test_alerts(reason: str, clause: str) -> None:
    assert told(reason) == clause


def test_one_alert_for_two_faults_names_both() -> None:
    assert "clock" in UNFIT
    assert "damaged" in UNFIT
