"""A node's state folder: who it is, what it remembers of jobs, and its blobs. One daemon per folder.

    node.json               {"format": 1, "node": "<id>"}: made once
    key.pem                 a secured node's key, from which its id follows (`node.credentials` has the other secrets)
    lock                    held while a daemon runs
    jobs/<job>.record       MessagePack of job.records.JobRecord
    jobs/<job>.events       one JSON object per line, without the progress lines
    jobs/<job>.trace        MessagePack of job.trace.NodePart: what this node recorded of its newest start; of the newest jobs
    blobs/                  data.blobs.BlobStore

Every file is written beside its place, synced and renamed, so a reader finds the old one or the new one, whole. A file of a
newer format, or a damaged one, is named in the log and left untouched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pnn.data.blobs import BlobStore, storage_error
from p2pnn.errors import CheckpointError, StorageError, UsageError
from p2pnn.job import records
from p2pnn.job.records import JobRecord
from p2pnn.types import JobId, NodeId

if TYPE_CHECKING:
    from p2pnn.identity.keys import NodeKey

log = logging.getLogger("p2pnn.storage")

FORMAT: Final = 1
EVENTS_BYTES_MAX: Final = 16 << 20
"""A job's event file grows no longer than this: a run of a million epochs must not fill the disk."""

TRACES_MAX: Final = 32
"""Jobs whose traces are kept, 1.3 MB each at most; older ones go."""

_JOB: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,79}")


class Storage:
    """Opens the folder and locks it; a folder that it makes is for its owner alone, because training data lie in it.

    quota_bytes: of the blobs; 0 for no quota. plain: a node without a key, of a mesh that lies on this machine. key: the
    node's. Raises UsageError where another daemon holds it, it cannot be made, or was made for the other kind of node,
    StorageError where it cannot be used.
    """

    def __init__(self, root: Path, quota_bytes: int = 0, plain: bool = True) -> None:
        self.root = root
        self.key: NodeKey | None = None
        _make(root)
        try:
            (root / "jobs").mkdir(exist_ok=True)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, root) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise UsageError(
                f"another daemon uses the state folder {root}; stop it (p2pnn node stop) or name another folder with --state-dir"
            ) from error
        try:
            self.node = self._plain_identity() if plain else self._secured_identity()
            self.blobs = BlobStore(root / "blobs", quota_bytes)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock)

    def load_records(self) -> dict[JobId, JobRecord]:
        """All readable records. What cannot be read is left as it is, and named in the log."""
        found: dict[JobId, JobRecord] = {}
        for path in sorted((self.root / "jobs").glob("*.record")):
            try:
                record = records.decode(path.read_bytes(), str(path))
            except (OSError, CheckpointError) as error:
                log.warning("record unreadable file=%s reason=%s", path, error)
                continue
            found[record.job] = record
        return found

    def save_record(self, record: JobRecord) -> None:
        """Store the record durably. Raises StorageError; then the old one stands. A newer format is never overwritten."""
        path = self._path(record.job, "record")
        if path.exists():
            records.decode(path.read_bytes(), str(path))
        replace_file(path, records.encode(record))

    def append_events(self, job: JobId, events: list[dict[str, Any]]) -> None:
        """Add lines to a job's event file; silently nothing once it is full. Raises StorageError."""
        path = self._path(job, "events")
        text = "".join(json.dumps(event) + "\n" for event in events)
        try:
            with path.open("a", encoding="utf-8") as file:
                if file.tell() + len(text) <= EVENTS_BYTES_MAX:
                    file.write(text)
        except OSError as error:
            raise storage_error(error, path) from error

    def load_events(self, job: JobId) -> list[dict[str, Any]]:
        """The lines of a job's event file; a torn last line is left out."""
        events = []
        with contextlib.suppress(OSError):
            for line in self._path(job, "events").read_text("utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    events.append(json.loads(line))
        return events

    def save_trace(self, job: JobId, data: bytes) -> None:
        """Store what was recorded of a job, and remove that of the oldest beyond TRACES_MAX. Raises StorageError."""
        path = self._path(job, "trace")
        replace_file(path, data)
        try:
            found = sorted((self.root / "jobs").glob("*.trace"), key=lambda file: file.stat().st_mtime_ns)
            for old in found[: max(0, len(found) - TRACES_MAX)]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error

    def load_trace(self, job: JobId) -> bytes | None:
        """What was recorded of a job; None where nothing was, or it is no longer kept. Raises StorageError."""
        path = self._path(job, "trace")
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path) from error

    def _path(self, job: JobId, kind: str) -> Path:
        if not valid_job_id(job):
            raise UsageError(f"{job!r} is not a job's name; `p2pnn jobs ls` shows them")
        return self.root / "jobs" / f"{job}.{kind}"

    def _secured_identity(self) -> NodeId:
        """The id that follows from the key, which is made at the first start."""
        from p2pnn.identity.keys import NodeKey  # a plain node does without, and starts sooner

        path = self.root / "key.pem"
        try:
            self.key = NodeKey.load(path.read_bytes(), str(path))
        except FileNotFoundError:
            if (self.root / "node.json").exists():
                raise UsageError(
                    f"the state folder {self.root} belongs to a plain node, which has no key: name another with --state-dir,"
                    " or start it with --plain",
                    setting="state_dir",
                ) from None
            self.key = NodeKey.generate()
            replace_file(path, self.key.pem, mode=0o600)
        except OSError as error:
            raise storage_error(error, path) from error
        node = self.key.public.node
        replace_file(self.root / "node.json", json.dumps({"format": FORMAT, "node": node}).encode() + b"\n")
        return node

    def _plain_identity(self) -> NodeId:
        if (self.root / "key.pem").exists():
            raise UsageError(
                f"the state folder {self.root} belongs to a node with a key: leave out --plain, or name another with --state-dir",
                setting="state_dir",
            )
        path = self.root / "node.json"
        try:
            found = json.loads(path.read_text("utf-8"))
            if found["format"] > FORMAT:
                raise UsageError(
                    f"{path} has format {found['format']}, this p2pnn reads up to {FORMAT}; use a newer p2pnn"
                )
            if not re.fullmatch(r"[0-9a-f]{32}", found["node"]):
                raise ValueError("not a node id")
            return NodeId(found["node"])
        except FileNotFoundError:
            node = NodeId(secrets.token_hex(16))
            replace_file(path, json.dumps({"format": FORMAT, "node": node}).encode() + b"\n")
            return node
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{path} is damaged ({error}); restore it, or move it away to become a new node"
            ) from error


def _make(root: Path) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise storage_error(error, root) from error
        why = os.strerror(errno.EACCES) if error.errno == errno.ENOENT else error.strerror  # what /proc says of itself
        raise UsageError(
            f"the state folder {root} cannot be made: {why}; name another with --state-dir or P2PNN_STATE_DIR",
            setting="state_dir",
        ) from error


def valid_job_id(job: str) -> bool:
    """Whether this may be a job's id; ids become file names."""
    return bool(_JOB.fullmatch(job))


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that a reader finds the old content or the new, whole. Raises StorageError; then the old one stands.

    mode: of the file, less the umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(error, path, len(data)) from error
