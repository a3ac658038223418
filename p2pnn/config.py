"""Where p2pnn's files lie, and how a daemon is configured: flag over environment over file.

Every setting of a daemon has one name, spelled alike in its three places: `--state-dir`, `P2PNN_STATE_DIR`, and
`state_dir` in node.toml. The file is the one named by `--config` or P2PNN_CONFIG, else
`$XDG_CONFIG_HOME/p2pnn/node.toml`, else `/etc/p2pnn/node.toml`; only one of them is read. A key that is not known is
refused with the nearest name, because a misspelt limit that is silently ignored is worse than a daemon that does not start.

Whoever sets a state folder of his own gets the socket inside it, so two daemons on one machine need only two folders, names
and ports.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from p2pnn.errors import NotAllowedError, UsageError
from p2pnn.types import Address, is_node_name
from p2pnn.values import address, everybody_reads, join_token, peer_address, token_credential, truth, words
from p2pnn.values import advertised as advertised
from p2pnn.values import parse_bytes as parse_bytes
from p2pnn.values import unknown as unknown

BAD_CONFIGURATION: Final = 78
"""Exit status of `node start` for a bad node.toml or environment (sysexits' EX_CONFIG); a bad flag is a usage error."""

SYSTEM_CONFIG: Final = Path("/etc/p2pnn/node.toml")
SYSTEM_SOCKET: Final = Path("/run/p2pnn/p2pnn.sock")
SOCKET_PATH_BYTES_MAX: Final = 107
"""A unix socket's path lies in a field of 108 bytes with a zero at its end (unix(7))."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
PRESETS: Final = ("loopback", "lan", "wan")
"""How fast other nodes count as dead; the numbers are in `cluster.presets`."""

KEYS: Final = (
    "name",
    "state_dir",
    "listen",
    "join",
    "advertise",
    "token",
    "token_file",
    "plain",
    "socket",
    "socket_group",
    "cluster",
    "preset",
    "quota",
    "profile_cache",
    "log_level",
)
TOKEN_KEYS: Final = ("token", "token_file")

NAME_CHARS_MAX: Final = 64
"""Of a node's or a cluster's name, which peers read in one column (and refuse when it is longer)."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One daemon's configuration, resolved to the last default.

    listen: port 0 asks for a free one. join: any one peer is enough. quota_bytes: of the chunk store; 0 for no quota.
    socket_group: the group whose people may open the socket, None for the daemon's user alone. lifeline_fd: the daemon ends
    when the other end of this pipe closes. ready_fd: gets one JSON line when the daemon is ready. secured: with keys and TLS;
    a plain node listens on this machine only. token: to join with, empty for none. advertise: addresses for the line by which
    others join, in place of this machine's own, or with `+` besides them. profile_cache: a file that daemons of one machine
    may share, None for one in the state folder. preset: one of PRESETS.
    """

    name: str
    state_dir: Path
    listen: Address
    join: tuple[Address, ...]
    socket: Path
    cluster: str
    socket_group: str | None = None
    quota_bytes: int = 0
    lifeline_fd: int | None = None
    ready_fd: int | None = None
    profile_cache: Path | None = None
    log_level: str = "info"
    preset: str = "loopback"
    secured: bool = False
    token: str = field(default="", repr=False)
    advertise: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Places:
    """A person's folders, by the XDG base directory specification."""

    config: Path
    state: Path
    data: Path
    cache: Path
    runtime: Path | None

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> Places:
        home = Path(environ.get("HOME") or _home())

        def base(variable: str, default: str) -> Path:
            value = environ.get(variable, "")
            # The specification: a path that is not absolute is to be ignored.
            return (Path(value) if value.startswith("/") else home / default) / "p2pnn"

        runtime = environ.get("XDG_RUNTIME_DIR", "")
        return cls(
            config=base("XDG_CONFIG_HOME", ".config"),
            state=base("XDG_STATE_HOME", ".local/state"),
            data=base("XDG_DATA_HOME", ".local/share"),
            cache=base("XDG_CACHE_HOME", ".cache"),
            runtime=Path(runtime) / "p2pnn" if runtime.startswith("/") else None,
        )

    @property
    def runs(self) -> Path:
        return self.data / "runs"

    @property
    def profile_cache(self) -> Path:
        return self.cache / "profile"


@dataclass(frozen=True, slots=True)
class SocketChoice:
    """The daemon's socket as the command line sees it. asked: a person named it, so nothing else may take its place."""

    path: Path
    asked: bool


def node_config(
    flags: Mapping[str, Any],
    *,
    config: str | None = None,
    lifeline_fd: int | None = None,
    ready_fd: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> NodeConfig:
    """Resolve a daemon's configuration. flags: key → value, None where the flag was not given.

    Raises UsageError for a file or value that cannot be used, NotAllowedError for a file that may not be read.
    """
    settings = _settings(flags, config, environ)
    _check_token_hidden(config, environ)
    places = Places.of(environ)
    state = _path(settings, "state_dir") or places.state
    level = _given(settings, "log_level", "info")
    if level not in LOG_LEVELS:
        raise UsageError(f"log_level = {level!r} is not one of {', '.join(LOG_LEVELS)}")
    plain = truth(_given(settings, "plain", False), "plain")
    listen = address(_given(settings, "listen", "127.0.0.1:7700" if plain else "0.0.0.0:7700"), "listen")
    return NodeConfig(
        name=_node_name(settings),
        state_dir=state,
        listen=listen,
        join=tuple(peer_address(text, plain) for text in words(settings.get("join"), "join")),
        socket=_socket(settings, places),
        cluster=_cluster(settings),
        socket_group=_text(settings, "socket_group"),
        quota_bytes=parse_bytes(_given(settings, "quota", 0), "quota"),
        lifeline_fd=lifeline_fd,
        ready_fd=ready_fd,
        profile_cache=_path(settings, "profile_cache"),
        log_level=level,
        preset=_preset(settings, listen),
        secured=not plain,
        token="" if plain else join_token(_text(settings, "token") or "", _path(settings, "token_file"), environ),
        advertise=tuple(text for text in words(settings.get("advertise"), "advertise") if advertised(text)),
    )


def can_configure(config: str | None = None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether file and environment are sound by themselves, so that what is wrong must be a flag."""
    try:
        node_config({}, config=config, environ=environ)
    except (UsageError, NotAllowedError):
        return False
    return True


def is_configured(key: str, config: str | None = None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether file or environment set the key, whatever a flag says; a token, also systemd.

    Raises as `node_config` does for a bad file.
    """
    settings = _settings({}, config, environ)
    by_systemd = key in TOKEN_KEYS and token_credential(environ) is not None
    return by_systemd or any(_given(settings, one, None) is not None for one in same_setting(key))


def same_setting(key: str) -> tuple[str, ...]:
    """The keys that say the same thing in different ways, this one among them."""
    return TOKEN_KEYS if key in TOKEN_KEYS else (key,)


def client_socket(flag: str | None = None, environ: Mapping[str, str] = os.environ) -> SocketChoice:
    """The socket that the command line speaks to: the one asked for, else the person's daemon, else the system's."""
    settings = _settings({"socket": flag}, None, environ)
    places = Places.of(environ)
    path = _socket(settings, places)
    if settings.get("socket") or settings.get("state_dir"):
        return SocketChoice(path, asked=True)
    if not _exists(path) and _exists(SYSTEM_SOCKET):
        return SocketChoice(SYSTEM_SOCKET, asked=False)
    return SocketChoice(path, asked=False)


def config_file(named: str | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The node.toml that counts, or None where there is none. A named file must exist."""
    named = named or environ.get("P2PNN_CONFIG") or None
    if named:
        path = _expand(named, "the configuration file")
        if not _exists(path):
            raise UsageError(f"no configuration file {path}")
        return path
    for path in (Places.of(environ).config / "node.toml", SYSTEM_CONFIG):
        if _exists(path):
            return path
    return None


def _settings(flags: Mapping[str, Any], config: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """File, then environment, then flags, each over the one before."""
    settings: dict[str, Any] = {}
    path = config_file(config, environ)
    if path is not None:
        settings |= _read(path)
    for key in KEYS:
        value = environ.get(f"P2PNN_{key.upper()}", "")
        if value:
            settings[key] = value
    given = {key: value for key, value in flags.items() if value not in (None, (), [])}
    if "state_dir" in given:
        settings.pop(
            "socket", None
        )  # a folder that a flag names brings its own; P2PNN_SOCKET may name another daemon's
    return settings | given


def _read(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except PermissionError as error:
        raise NotAllowedError(f"{path} cannot be read: {error.strerror}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not a readable TOML file: {error}") from error
    for key in found:
        if key not in KEYS:
            raise UsageError(unknown(f"{path}: unknown key", key, KEYS))
    return found


def _check_token_hidden(config: str | None, environ: Mapping[str, str]) -> None:
    """Raises UsageError where the configuration file shows a token to everybody."""
    path = config_file(config, environ)
    if path is not None and _read(path).get("token") and everybody_reads(path.stat()):
        raise UsageError(
            f"everybody on this machine may read {path}, which holds a token; take the right to read from others"
            f" (chmod o-r {path}), or name a file of its own by token_file",
            setting="token",
        )


def _given(settings: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value; an empty text counts as none, in the file as in the environment, but 0 and false do not."""
    value = settings.get(key)
    return default if value is None or value == "" else value


def _node_name(settings: Mapping[str, Any]) -> str:
    name = _given(settings, "name", os.uname().nodename.split(".")[0] or "node")
    wrong = not isinstance(name, str) or not is_node_name(name)
    if wrong or len(name) > NAME_CHARS_MAX:
        raise UsageError(
            f"name = {name!r} cannot be a node's name; use up to {NAME_CHARS_MAX} letters, digits,"
            " '-', '_' and '.', as in attic-pc"
        )
    return str(name)


def _cluster(settings: Mapping[str, Any]) -> str:
    name = _text(settings, "cluster") or "p2pnn"
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise UsageError(f"cluster = {name!r} cannot be a mesh's name; use up to {NAME_CHARS_MAX} printable characters")
    return name


def _socket(settings: Mapping[str, Any], places: Places) -> Path:
    path = _path(settings, "socket")
    if path is None:
        state = _path(settings, "state_dir")
        if state is not None:
            path = state / "p2pnn.sock"
        else:
            path = (places.runtime or places.state) / "p2pnn.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise UsageError(
            f"the socket's path {path} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that the system allows;"
            " name a shorter one with --socket"
        )
    return path


def _preset(settings: Mapping[str, Any], listen: Address) -> str:
    found = _text(settings, "preset")
    if found is None:
        here = listen.host in ("localhost", "::1") or listen.host.startswith("127.")
        return "loopback" if here else "lan"
    if found not in PRESETS:
        raise UsageError(unknown("unknown preset", found, PRESETS))
    return found


def _text(settings: Mapping[str, Any], key: str) -> str | None:
    value = settings.get(key)
    if value is not None and not isinstance(value, str | Path):
        raise UsageError(f"{key} = {value!r} is not a text; write it in quotes")
    if "\0" in str(value):
        raise UsageError(f"{key} = {value!r} holds a zero character, which no name in this system may")
    return None if value is None or str(value) == "" else str(value)


def _path(settings: Mapping[str, Any], key: str) -> Path | None:
    text = _text(settings, key)
    return Path(os.path.abspath(_expand(text, key))) if text else None


def _expand(text: str, what: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{what} = {text!r}: nobody's home is called so on this machine; write the whole path"
        ) from error


def _home() -> Path:
    """The user's home by the system's list; `/` for one that has none there, as the users that systemd makes for a service."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def _exists(path: Path) -> bool:
    """Also True where a folder on the way may not be entered: who cannot look must be told so, not passed over."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True
