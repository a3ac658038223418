"""A daemon's API on a unix socket, as far as a test scripts it: (method, path) → answer."""

import http.server
import json
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = Any
"""bytes; anything for JSON; (status, anything) for an error; a callable (body) → one of those; an iterator of ndjson."""


class FakeDaemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.answers: dict[tuple[str, str], Answer] = {}
        self.calls: list[tuple[str, str, bytes]] = []
        self.path = path
        super().__init__(str(path), _Handler)

    def __setitem__(self, key: str, answer: Answer) -> None:
        method, _, path = key.partition(" ")
        self.answers[method, f"/api/v1/{path}"] = answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing where the other side hung up: an interrupted reader does."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def bodies(self, key: str) -> list[bytes]:
        method, _, path = key.partition(" ")
        return [body for m, p, body in self.calls if (m, p) == (method, f"/api/v1/{path}")]


@contextmanager
def fake_daemon(path: Path) -> Iterator[FakeDaemon]:
    path.parent.mkdir(parents=True, exist_ok=True)
    server = FakeDaemon(path)
    server["GET node"] = {"name": "a", "node": "0" * 32}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        path.unlink(missing_ok=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeDaemon

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.calls.append((self.command, self.path, body))
        answer = self.server.answers.get((self.command, self.path), (404, {"error": f"no {self.path}", "exit": 2}))
        if isinstance(answer, Callable):  # type: ignore[arg-type]
            answer = answer(body)
        if answer is None:  # break off
            self.close_connection = True
            return
        if isinstance(answer, Iterator):
            self._stream(answer)
            return
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, lines: Iterator[Any]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            if line is None:  # break off
                self.close_connection = True
                return
            data = json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_DELETE = _serve
