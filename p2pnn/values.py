"""What a person writes, read: sizes, truths, tokens, addresses, and names that nearly exist."""

from __future__ import annotations

import difflib
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from p2pnn.errors import NotAllowedError, UsageError
from p2pnn.types import Address

TOKEN_CREDENTIAL: Final = "p2pnn.join-token"
"""What systemd calls the token that LoadCredential= gives to a service."""

TOKEN_CHARS_MAX: Final = 256
"""Read of a token's file; a token has 113."""

NAMES_SHOWN: Final = 8
"""Of names that exist, in the sentence that refuses another."""

_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(value: object, key: str) -> int:
    """A size: a number of bytes, or text with a unit, such as `20 GB` or `512 MiB`. Raises UsageError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    text = str(value).strip().lower()
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz").strip()
    unit = text[len(digits) :].strip()
    try:
        number = float(digits)
    except ValueError:
        number = -1.0
    if unit not in _UNITS or not 0 <= number < 2**60:
        raise UsageError(f"{key} = {value!r} is not a size; write bytes or a unit, as in 20 GB or 512 MiB")
    return int(number * _UNITS[unit])


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence that refuses a name and gives the nearest known one: `unknown key 'epoch' in …; did you mean epochs?`"""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else _there(names)
    return f"{kind} {name!r}; {hint}"


def _there(names: list[str]) -> str:
    if len(names) < 2:
        return f"there is only {names[0]}" if names else "there is none"
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"there are {shown}" + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")


def join_token(text: str, path: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """The token to join with: `text`, or what lies in the file `path`, else a credential of systemd; empty for none.

    Raises UsageError for one that is no token, or a file that cannot be read, is empty, or is everybody's to read.
    """
    if text and path:
        raise UsageError("token and token_file both name a token: give one of them", setting="token")
    if not text and path is None:
        path = token_credential(environ)
    if path is not None:
        text = read_token(path)
    if not text:
        return ""
    from p2pnn.identity.tokens import Token  # most commands need none

    return str(Token.parse(text))


def token_credential(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file that systemd made of LoadCredential=; None where there is none."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    path = Path(folder) / TOKEN_CREDENTIAL
    return path if folder and path.exists() else None


def read_token(path: Path) -> str:
    """What a file with a token holds. Raises UsageError."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            open_to_all = everybody_reads(os.fstat(file.fileno()))
            text = file.read(TOKEN_CHARS_MAX).strip()
    except OSError as error:
        raise UsageError(f"the token in {path} cannot be read: {error.strerror}", setting="token_file") from error
    if open_to_all:
        raise UsageError(
            f"everybody on this machine may read the token in {path}; make it this user's alone (chmod 600 {path})",
            setting="token_file",
        )
    if not text:
        raise UsageError(f"there is no token in {path}: the file is empty", setting="token_file")
    return text


def everybody_reads(found: os.stat_result) -> bool:
    """Whether this is a file whose mode lets other users read it."""
    return stat.S_ISREG(found.st_mode) and bool(found.st_mode & stat.S_IROTH)


def typed_token(named: str | None) -> str | None:
    """What stands on standard input, for `-`; None for any other name of a file, or none. Raises UsageError for nothing."""
    if named != "-":
        return None
    text = sys.stdin.readline(TOKEN_CHARS_MAX).strip()
    if not text:
        raise UsageError("there is no token on standard input: its first line is empty", setting="token_file")
    return text


def words(value: object, key: str) -> list[str]:
    """A list of addresses, also as one text with commas or spaces. Raises UsageError."""
    if value is None:
        return []
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise UsageError(f'{key} = {value!r} is not a list of addresses; write ["192.168.1.20:7700"]')
    return [word for part in parts for word in part.replace(",", " ").split()]


def address(value: object, key: str) -> Address:
    """`HOST:PORT` or `HOST`. Raises UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"{key} = {value!r} is not an address; write HOST:PORT, as in 192.168.1.20:7700")
    found = Address.parse(value)
    if not found.host.isprintable() or any(c.isspace() for c in found.host):
        raise UsageError(f"{key} = {value!r} is not an address; write HOST:PORT, as in 192.168.1.20:7700")
    return found


def peer_address(text: str, plain: bool) -> Address:
    """Where a peer is to be dialled, by a plain node on this machine only. Raises UsageError, NotAllowedError."""
    found = address(text, "join")
    if not found.port:
        raise UsageError(
            f"join = {text!r} names port 0, on which no peer can be reached; write the port that it listens on"
        )
    if plain and not _may_be_here(found.host):
        raise NotAllowedError(
            f"join = {text!r} is on another machine, and a plain node, without keys, speaks to this machine only;"
            " leave out --plain, and join by a token",
            setting="join",
        )
    return found


def advertised(text: str, port: int = 7700) -> Address:
    """An address for the line by which others join, without the `+` before it. port: where none is named. Raises UsageError."""
    found = Address.parse(text.removeprefix("+"), port)
    if not found.port:
        raise UsageError(
            f"advertise = {text!r}: port 0 reaches nobody; write the port that peers are to dial", setting="advertise"
        )
    return found


def _may_be_here(host: str) -> bool:
    """Whether this is a loopback address, or a name, which only dialling it tells."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return True


def truth(value: object, key: str) -> bool:
    """True or false, as TOML has it or as a word. Raises UsageError."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    found = value if isinstance(value, bool) else known.get(str(value).lower())
    if found is None:
        raise UsageError(f"{key} = {value!r} is neither true nor false")
    return found
