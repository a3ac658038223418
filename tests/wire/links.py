"""Pairs of connections without sockets, and strategies for messages: what several of the wire's tests share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from p2pnn.wire.connection import BodyFor, Connection, Role
from p2pnn.wire.events import Event, HelloReceived, Opened
from p2pnn.wire.fields import MaybeNode, NodeText
from p2pnn.wire.limits import DEFAULTS, Limits
from p2pnn.wire.messages import Hello, LinkKind, Message, Tensor, Welcome

DIALLER, LISTENER = "0" * 32, "f" * 32


def hello(link: LinkKind = LinkKind.CONTROL, low: int = 1, high: int = 1) -> Hello:
    return Hello(low, high, link, DIALLER, "a", "home", 7700, "b0", "s1" if link is LinkKind.DATA else "")


def welcome(version: int = 1) -> Welcome:
    return Welcome(version, LISTENER, "b", "b1", "s1")


def tensor(micro_batch: int = 0) -> Tensor:
    return Tensor("job-1", 1, 0, micro_batch)


def anywhere(message: Message, size: int) -> memoryview:
    return memoryview(bytearray(size))


def nowhere(message: Message, size: int) -> None:
    return None


def outgoing(connection: Connection) -> Iterator[bytes]:
    """All that leaves now, write by write."""
    while (item := connection.data_to_send()) is not None:
        yield item.header
        if item.body is not None:
            yield bytes(item.body)


def wire(connection: Connection) -> bytes:
    return b"".join(outgoing(connection))


def events(connection: Connection) -> list[Event]:
    return list(iter(connection.next_event, None))


def listening(
    link: LinkKind | None = LinkKind.CONTROL, body_for: BodyFor = anywhere, limits: Limits = DEFAULTS, now: float = 0.0
) -> Connection:
    """A listener, open with a link of this kind, its Welcome written; with None, still waiting for Hello."""
    listener = Connection(Role.LISTENER, None, body_for, limits, now)
    if link is not None:
        assert isinstance(listener.receive(wire(dialling(link)), now)[0], HelloReceived)
        listener.accept(welcome())
        assert isinstance(listener.next_event(), Opened)
        wire(listener)
    return listener


def dialling(link: LinkKind = LinkKind.CONTROL, limits: Limits = DEFAULTS, now: float = 0.0) -> Connection:
    return Connection(Role.DIALER, hello(link), anywhere, limits, now)


def pair(
    link: LinkKind = LinkKind.CONTROL, body_for: BodyFor = anywhere, limits: Limits = DEFAULTS
) -> tuple[Connection, Connection]:
    """Dialler and listener, open."""
    dialler, listener = dialling(link, limits), Connection(Role.LISTENER, None, body_for, limits, 0.0)
    listener.receive(wire(dialler), 0.0)
    listener.accept(welcome())
    events(listener)
    dialler.receive(wire(listener), 0.0)
    assert dialler.is_open
    assert listener.is_open
    return dialler, listener


def messages(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Any message of this class that is legal on the wire."""
    return st.builds(kind, *(_values(hint) for name, hint in _hints(kind).items() if name != "BODY"))


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    kind: Any
    meta: Any
    kind, meta = (hint.__origin__, hint.__metadata__[0]) if hasattr(hint, "__metadata__") else (hint, msgspec.Meta())
    if get_origin(kind) is tuple and get_args(kind)[-1] is not ...:
        return st.tuples(*map(_values, get_args(kind)))
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        many = (
            2 if isinstance(item, type) and issubclass(item, msgspec.Struct) else 5
        )  # a struct of many texts is slow to draw
        return st.lists(_values(item), max_size=min(many, meta.max_length or many)).map(tuple)
    if kind is int:
        return st.integers(meta.ge, meta.le)
    if kind is str:
        if meta.pattern in (NodeText.__metadata__[0].pattern, MaybeNode.__metadata__[0].pattern):
            return st.sampled_from([DIALLER, LISTENER, *([""] if "?" in meta.pattern else [])])
        if meta.pattern and ("{" in meta.pattern or "A-Z" in meta.pattern):
            return st.from_regex(re.compile(meta.pattern, re.ASCII)).filter(_within(meta))
        text = st.text(st.characters(codec="utf-8", min_codepoint=33), max_size=60)
        return text.filter(lambda value: not meta.pattern or re.search(meta.pattern, value) is not None)
    if kind is bytes:
        return st.binary(max_size=200)
    if kind is float:
        return st.floats(allow_nan=False)
    if issubclass(kind, IntEnum):
        return st.sampled_from(kind)
    return st.builds(kind, *map(_values, _hints(kind).values()))


def _within(meta: msgspec.Meta) -> Callable[[str], bool]:
    return lambda value: meta.max_length is None or len(value) <= meta.max_length
