"""What went wrong with TLS, in the words of `p2pnn peers`.

Either end may find out: ours raises with OpenSSL's verification code, the peer's sends an alert, whose name is in the
error that we then get.
"""

from __future__ import annotations

import ssl
from typing import Final

WRONG_CLUSTER: Final = "wrong cluster: its certificate and this node's are of different clusters"
CLOCK: Final = (
    "clock: a certificate is not valid at this time: this node's clock or that one's is wrong, or it was off too long"
)
UNFIT: Final = "clock, most likely: the other side takes this node's certificate for not valid yet, or for damaged"
"""OpenSSL's alert for both."""

_CODES: Final[dict[int, str]] = {9: CLOCK, 10: CLOCK} | dict.fromkeys((2, 7, 18, 19, 20, 21), WRONG_CLUSTER)
"""X509_V_ERR_…: not yet valid, has expired; no issuer, a wrong signature, self-signed."""

_ALERTS: Final = (
    ("UNKNOWN_CA", WRONG_CLUSTER),
    ("BAD_CERTIFICATE", UNFIT),
    ("CERTIFICATE_EXPIRED", CLOCK),
    ("CERTIFICATE_REQUIRED", "no TLS as nodes speak it: a certificate was wanted"),
    ("DECRYPT_ERROR", WRONG_CLUSTER),
    ("WRONG_VERSION_NUMBER", "no TLS: a plain node, or something that is none, listens there"),
    ("HTTP_REQUEST", "no TLS: the other side speaks HTTP"),
    ("RECORD_LAYER_FAILURE", "no TLS: what it sent is none"),
    ("UNSUPPORTED_PROTOCOL", "no TLS 1.3"),
    ("PROTOCOL_VERSION", "no TLS 1.3"),
)


def words(error: ssl.SSLError) -> str:
    """One clause for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _CODES.get(error.verify_code, f"its certificate is refused: {error.verify_message}")
    if isinstance(error, ssl.SSLEOFError):
        return "the connection ended within TLS: a plain node, or something that is none, listens there"
    reason = error.reason or ""
    return next((clause for alert, clause in _ALERTS if alert in reason), f"TLS: {reason or error}".lower())
