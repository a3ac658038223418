"""What a person writes, read: sizes, truths, tokens, and names that nearly exist."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from p2pnn.errors import UsageError

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

    Raises UsageError for one that is no token, or a file that cannot be read.
    """
    if text and path:
        raise UsageError("token and token_file both name a token: give one of them", setting="token")
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    credential = Path(folder) / TOKEN_CREDENTIAL if folder else None
    if not text and path is None and credential is not None and credential.exists():
        path = credential
    if path is not None:
        text = read_token(path)
    if not text:
        return ""
    from p2pnn.identity.tokens import Token  # most commands need none

    return str(Token.parse(text))


def read_token(path: Path) -> str:
    """What a file with a token holds. Raises UsageError."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(TOKEN_CHARS_MAX).strip()
    except OSError as error:
        raise UsageError(f"the token in {path} cannot be read: {error.strerror}", setting="token_file") from error


def typed_token(named: str | None) -> str | None:
    """What stands on standard input, for `-`; None for any other name of a file, or none."""
    if named != "-":
        return None
    return sys.stdin.readline(TOKEN_CHARS_MAX).strip()


def truth(value: object, key: str) -> bool:
    """True or false, as TOML has it or as a word. Raises UsageError."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise UsageError(f"{key} = {value!r} is neither true nor false")
    return found
