"""Running a daemon as a process: loop, signals, lifeline, unix socket, and the words that say it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import grp
import json
import logging
import os
import shlex
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from p2pnn.api import notify
from p2pnn.api.app import application
from p2pnn.config import NodeConfig
from p2pnn.data.blobs import storage_error
from p2pnn.errors import NotAllowedError, P2pnnError, UsageError
from p2pnn.node.daemon import Daemon

log = logging.getLogger("p2pnn.node")

DRAIN_S: Final = 60.0
"""As a service, for other nodes to take over the work of one that is to stop; the service manager is asked for patience."""

SHUTDOWN_TIMEOUT_S: Final = 1.0
"""How long requests may go on while the daemon stops; followers of a job are cut after that."""


def run_daemon(config: NodeConfig) -> int:
    """Run a daemon until it is told to stop; returns the exit status. Raises P2pnnError where it cannot start."""
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    wishes = notify.take(os.environ, os.getpid())  # before any process is started that would inherit them
    if wishes.watchdog_s:
        faulthandler.enable()  # systemd ends a loop that hangs by SIGABRT: its log then says where it hung
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(config, wishes))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # no wheel for this system: asyncio's own loop does, more slowly
        return None
    return uvloop.new_event_loop


async def _run(config: NodeConfig, wishes: notify.Wishes) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    politely = asyncio.Event()

    def terminate() -> None:
        if wishes.address:
            politely.set()
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    if config.lifeline_fd is not None:
        _watch_lifeline(config.lifeline_fd, stop)
    daemon = Daemon(config)  # locks the state folder, so what follows has one owner
    try:
        listener = bind_socket(config.socket, config.socket_group)
    except BaseException:
        daemon.storage.close()
        raise
    try:
        await daemon.start()
        reporter = notify.Reporter(loop, wishes, lambda: _status(daemon))
        await _serve(config, daemon, listener, stop, politely, reporter)
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            config.socket.unlink()
    log.info("stopped node=%s", config.name)
    return 0


async def _serve(
    config: NodeConfig,
    daemon: Daemon,
    listener: socket.socket,
    stop: asyncio.Event,
    politely: asyncio.Event,
    reporter: notify.Reporter,
) -> None:
    # handler_cancellation: who follows a job and goes away must not be waited on until the job's next event
    runner = web.AppRunner(
        application(daemon, stop), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S, handler_cancellation=True
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        _announce(config, daemon)
        reporter.ready()
        await stop.wait()
    finally:
        reporter.stopping()
        if politely.is_set():
            await _drain(daemon)
        await daemon.close(f"node {config.name} was stopped")
        await runner.cleanup()
        # A thread that still writes or plans takes its time; meanwhile the service manager is asked for patience.
        await asyncio.get_running_loop().shutdown_default_executor()
        reporter.close()


async def _drain(daemon: Daemon) -> None:
    """Have the others take over what this node does, as far as they can and in time."""
    try:
        async with asyncio.timeout(DRAIN_S):
            async for words in daemon.draining.drain(force=False):
                log.info("stopping waits for %s", words)
    except (P2pnnError, TimeoutError) as error:
        log.warning("stopped before it had drained reason=%s", error or f"it took longer than {DRAIN_S:.0f} s")


def _status(daemon: Daemon) -> str:
    return notify.status(len(daemon.members.names()) - 1, daemon.place.job, len(daemon.place.waiting))


def bind_socket(path: Path, group: str | None = None) -> socket.socket:
    """A unix socket that only this user, and the people of `group`, may open. A socket that a dead daemon left is replaced; a
    living one is not.

    Raises UsageError where a daemon answers there, the file is no socket or there is no such group, NotAllowedError where
    this user may not give the socket to the group, StorageError where it cannot be made.
    """
    number = _group_id(group) if group else -1
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _clear(path)
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before it listens
        if group:
            _open_to_group(path, group, number)
    except OSError as error:
        listener.close()
        raise storage_error(error, path) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Remove the socket of a dead daemon."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} exists and is not a socket; name another with --socket", setting="socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue of a living daemon must not hold us
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise UsageError(f"another daemon answers on {path}; stop it (p2pnn node stop) or name another with --socket")


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(
            f"there is no group {group} to open the socket to; make it (groupadd --system {group}) or name another with"
            " --socket-group",
            setting="socket_group",
        ) from None


def _open_to_group(path: Path, group: str, number: int) -> None:
    """Let the group's people connect; whoever cannot enter the socket's folder still cannot."""
    if path.stat().st_gid != number:  # as a service its own group is the one, and it may not give files away
        try:
            os.chown(path, -1, number)
        except PermissionError as error:
            raise NotAllowedError(
                f"the socket cannot be opened to the group {group}, because the user of this daemon is not in it; add the user"
                " to the group or name another with --socket-group",
                setting="socket_group",
            ) from error
    path.chmod(0o660)
    folder = path.parent.stat()
    if not folder.st_mode & (stat.S_IXGRP if folder.st_gid == number else stat.S_IXOTH):
        log.warning(
            "people of the group %s cannot reach the socket: they may not enter the folder %s", group, path.parent
        )


def _watch_lifeline(descriptor: int, stop: asyncio.Event) -> None:
    """Stop when the other end of the pipe closes: whoever started this daemon is gone."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            if os.read(descriptor, 4096):
                return
        loop.remove_reader(descriptor)
        stop.set()

    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, readable)


def _announce(config: NodeConfig, daemon: Daemon) -> None:
    facts = {
        "node": daemon.node,
        "name": config.name,
        "address": str(daemon.address),
        "socket": str(config.socket),
        "pid": os.getpid(),
    }
    if config.ready_fd is not None:
        try:
            with os.fdopen(config.ready_fd, "w") as file:
                file.write(json.dumps(facts) + "\n")
        except OSError as error:  # who started this daemon does not listen; its lifeline decides, not this
            log.warning("nobody was told that the node is ready reason=%s", error)
        return
    for line in _words(config, daemon):
        print(line)
    sys.stdout.flush()


def _words(config: NodeConfig, daemon: Daemon) -> list[str]:
    """What a person wants to know now."""
    speak = f"speak to it with: export P2PNN_SOCKET={shlex.quote(str(config.socket))}"
    if daemon.secured is None:
        start = "p2pnn node start --plain --name NAME --state-dir DIR --listen 127.0.0.1:0"
        return [
            f"node {config.name} listens on {daemon.address} (plain: without keys, so on this machine only)",
            speak,
            f"join it with: {start} --join {daemon.address}",
        ]
    identity = daemon.secured.identity
    lines = [f"node {config.name} listens on {daemon.address}", speak]
    if identity.founded_with is not None:
        try:
            line = identity.join_line(identity.founded_with, config.advertise, daemon.address)
        except UsageError as error:
            return [*lines, f"founded cluster {identity.credentials.cluster[:8]}; {error}"]
        return [
            *lines,
            f"founded cluster {identity.credentials.cluster[:8]}; on each machine that is to join, within 24 hours, start a"
            " node (p2pnn node start) and type there:",
            f"  {line}",
        ]
    if daemon.secured.arrival is not None:
        return [*lines, "joining; `p2pnn peers` shows how that goes"]
    return [
        *lines,
        f"cluster {identity.credentials.cluster[:8]}; `p2pnn token create` prints the line by which others join",
    ]
