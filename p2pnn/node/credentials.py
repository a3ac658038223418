"""The secrets in a node's state folder, as files that only their owner can read.

    key.pem           the node's key: made once, never leaves
    credentials.pem   its certificate, then that of the cluster's authority: one file, so that they always fit together
    authority.pem     the authority's key, on voters only

Joining another cluster replaces credentials.pem; a torn write leaves the old one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from p2pnn.data.blobs import storage_error
from p2pnn.errors import NotAllowedError, StorageError
from p2pnn.identity.authority import Authority, Certificate
from p2pnn.identity.keys import NodeKey
from p2pnn.node.storage import replace_file

log = logging.getLogger("p2pnn.identity")

FILE_BYTES_MAX: Final = 16 * 1024


class Credentials:
    """certificate, authority: empty before the node is of a cluster. ca: the authority with its key, None where it is not held.

    Raises StorageError where the certificate's file is damaged, or of another key.
    """

    def __init__(self, folder: Path, key: NodeKey) -> None:
        self.key_file = folder / "key.pem"
        self.chain_file = folder / "credentials.pem"
        self.key = key
        self.certificate: Certificate | None = None
        self.authority: Certificate | None = None
        self.ca: Authority | None = None
        self._ca_file = folder / "authority.pem"
        self._load()

    @property
    def cluster(self) -> str:
        """The cluster's name in tokens: SHA-256 of the authority's certificate; empty before there is one."""
        return self.authority.digest if self.authority is not None else ""

    def has_ended(self, now: float) -> bool:
        """Whether the certificate is of no use any more, so that only joining again helps. now: seconds since 1970."""
        return self.certificate is not None and now > self.certificate.ends_s

    def found(self, now: float) -> None:
        """Make an authority, and be its first node."""
        ca = Authority.found(now)
        certificate = ca.issue(self.key.public, now)
        self._write(self._ca_file, ca.pem)
        self._write(self.chain_file, certificate.pem + ca.certificate.pem)
        self.certificate, self.authority, self.ca = certificate, ca.certificate, ca

    def take(self, certificate: Certificate, authority: Certificate) -> None:
        """These are the node's from now on."""
        if self.authority is not None and authority != self.authority:
            self.drop_ca()
        self._write(self.chain_file, certificate.pem + authority.pem)
        self.certificate, self.authority = certificate, authority

    def hold_ca(self, pem: bytes) -> None:
        """Keep the authority's key. Raises StorageError where it is not of this node's authority."""
        if self.authority is None:
            raise StorageError("this node has no cluster whose authority that could be")
        found = Authority.load(self.authority, pem, "what a voter sent")
        self._write(self._ca_file, found.pem)
        self.ca = found

    def drop_ca(self) -> None:
        self.ca = None
        try:
            self._ca_file.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self._ca_file) from error

    def _load(self) -> None:
        chain = _read(self.chain_file)
        if chain is None:
            return
        try:
            certificate, authority = Certificate.load(chain)
        except (NotAllowedError, ValueError) as error:
            raise StorageError(
                f"{self.chain_file} is damaged ({error}); restore it, or remove it and join again"
            ) from None
        if certificate.key != self.key.public:
            raise StorageError(
                f"{self.chain_file} is of another key than {self.key_file}; restore the one that belongs to it"
            )
        self.certificate, self.authority = certificate, authority
        pem = _read(self._ca_file)
        if pem is None:
            return
        try:
            self.ca = Authority.load(authority, pem, str(self._ca_file))
        except StorageError as error:  # of a cluster that was being left, or founded, when the machine stopped
            log.warning("%s; it is not used", error)

    def _write(self, path: Path, data: bytes) -> None:
        replace_file(path, data, mode=0o600)


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, path) from error
