"""Speaking to the daemon: HTTP over its unix socket, by the standard library alone.

aiohttp takes 0.2 s to import, which every command would pay; `http.client` takes a tenth of that. One connection is kept
for all calls; a stream of events has one of its own, because it is read until the job ends.

What can go wrong has four names: no socket or nobody behind it (NoDaemonError), a socket that the file's mode keeps from us
(NotAllowedError), an answer that is an error (by its `exit`), and a daemon that went away in the middle (NoDaemonError).
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from p2pnn.errors import (
    JobFailedError,
    NoDaemonError,
    NotAllowedError,
    P2pnnError,
    TimedOutError,
    UsageError,
)

API: Final = "/api/v1"
ANSWER_TIMEOUT_S: Final = 60.0
"""For one answer. Fetching a blob from a peer over a slow link is the longest call: 8 MiB at 1.5 Mbit/s takes 45 s."""

_BY_EXIT: Final[dict[int, type[P2pnnError]]] = {
    1: JobFailedError,
    2: UsageError,
    3: NoDaemonError,
    4: NotAllowedError,
    5: TimedOutError,
}


class NotFoundError(UsageError):
    """The daemon knows no such job, blob or dataset."""


class Daemon:
    """One daemon, by its socket. Methods raise the errors named in this module's head; none is raised twice for one call."""

    def __init__(self, path: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._kept: _UnixConnection | None = None

    def get(self, path: str) -> Any:
        """The JSON answer to GET /api/v1/{path}."""
        return _json(self._call("GET", path))

    def post(self, path: str, body: Any = None) -> Any:
        """POST JSON (or bytes as MessagePack); the JSON answer."""
        if isinstance(body, bytes):
            return _json(self._call("POST", path, body, "application/msgpack"))
        return _json(self._call("POST", path, json.dumps({} if body is None else body).encode(), "application/json"))

    def put(self, path: str, body: bytes | memoryview) -> None:
        self._call("PUT", path, body, "application/octet-stream")

    def delete(self, path: str) -> Any:
        return _json(self._call("DELETE", path))

    def raw(self, path: str) -> bytes:
        """The bytes of the answer to GET."""
        return self._call("GET", path)

    def stream(
        self, path: str, idle_s: float | None = None, *, body: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The lines of an ndjson stream, each as a dict, until it ends. body: to POST; None: GET.

        It may end because the daemon did: http.client reads a chunked answer that breaks off as one that ended, so the
        reader must know what the last line is. idle_s: end also when nothing comes for so long.
        """
        connection = _UnixConnection(self.path, idle_s)
        try:
            if body is None:
                response = self._exchange(connection, "GET", path, None, "")
            else:
                response = self._exchange(connection, "POST", path, json.dumps(body).encode(), "application/json")
            if response.status >= 400:
                raise _api_error(response.status, response.read())
            while line := response.readline():
                if line.strip():
                    yield json.loads(line)  # takes NaN, which a run that diverged has as its loss
        except TimeoutError:
            return
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise NoDaemonError(f"the daemon on {self.path} broke off in the middle of an answer") from error
        finally:
            connection.close()

    def answers(self) -> bool:
        """Whether a daemon is there. Raises NotAllowedError where the socket is not ours to open."""
        try:
            self.get("node")
        except NoDaemonError:
            return False
        return True

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connection; the next call opens another."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _call(self, method: str, path: str, body: bytes | memoryview | None = None, content_type: str = "") -> bytes:
        fresh = self._kept is None
        connection = self._kept or _UnixConnection(self.path, self._timeout_s)
        self._kept = connection
        try:
            response = self._exchange(connection, method, path, body, content_type)
            answer = response.read()
        except (http.client.HTTPException, ConnectionError) as error:
            self.close()
            if not fresh:  # the daemon may close a connection that was idle; every call may be made again
                return self._call(method, path, body, content_type)
            raise NoDaemonError(f"the daemon on {self.path} broke off in the middle of an answer") from error
        except TimeoutError as error:
            self.close()
            raise TimedOutError(
                f"the daemon on {self.path} gave no answer to {method} {path} in {self._timeout_s:.0f} s"
            ) from error
        except BaseException:
            self.close()
            raise
        if response.status >= 400:
            raise _api_error(response.status, answer)
        return answer

    def _exchange(
        self, connection: _UnixConnection, method: str, path: str, body: bytes | memoryview | None, content_type: str
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            self._connect(connection)
        # http.client would write a memoryview element by element: it is asked for its bytes as they are.
        headers = {"Host": "p2pnn"} | ({"Content-Type": content_type} if content_type else {})
        if body is not None:
            headers["Content-Length"] = str(len(body) if isinstance(body, bytes) else body.nbytes)
        connection.request(method, f"{API}/{path}", body, headers)
        return connection.getresponse()

    def _connect(self, connection: _UnixConnection) -> None:
        try:
            connection.connect()
        except PermissionError as error:
            raise NotAllowedError(
                f"the daemon's socket {self.path} may not be opened by this user; join the group that owns it"
            ) from error
        except OSError as error:
            raise NoDaemonError(nobody_on(self.path)) from error


def nobody_on(path: Path) -> str:
    """The sentence for a socket without a daemon."""
    return (
        f"no daemon answers on {path}; start one with `p2pnn node start`,"
        " or name the socket of one that runs with --socket or P2PNN_SOCKET"
    )


def segment(text: str) -> str:
    """A person's word as one part of a path."""
    return quote(text, safe="")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            found.settimeout(self.timeout)
            found.connect(self._path)
        except BaseException:
            found.close()
            raise
        self.sock = found


def _json(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError as error:
        raise P2pnnError("the daemon's answer is not JSON; it may be of another version of p2pnn") from error


def _api_error(status: int, answer: bytes) -> P2pnnError:
    try:
        found = json.loads(answer)
        sentence, exit_status = str(found["error"]), int(found.get("exit", 1))
    except (KeyError, TypeError, ValueError, AttributeError):
        return P2pnnError(f"the daemon answered with status {status} and no reason; its log may tell more")
    if status == 404:
        return NotFoundError(sentence)
    return of_exit(exit_status, sentence)


def of_exit(exit_status: int, sentence: str) -> P2pnnError:
    """The error that the daemon tells by its exit status and its sentence."""
    return _BY_EXIT.get(exit_status, P2pnnError)(sentence)
