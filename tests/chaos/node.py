"""`python -m tests.chaos.node SWITCH CABLE NAME node start …`: the program itself, whose links can be cut from outside.

SWITCH is the port of what its connections to peers go through, 0 for none, and NAME is what this node is called there. CABLE is
a descriptor of the network namespace that it shall live in, 0 for none. The process ends with the one that started it, also while
it is stopped: the system kills it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys

from p2pnn.executor import process
from p2pnn.transport import attempt
from p2pnn.types import Address
from tests.chaos import cables
from tests.chaos.switch import CONNECTED, MAGIC, PREAMBLE, REFUSED, behind, door

PR_SET_PDEATHSIG = 1


async def through(switch: int, name: str, endpoint: Address) -> socket.socket:
    """A connection to the node that listens at the endpoint, by way of the switch. Raises OSError as a connect would."""
    loop = asyncio.get_running_loop()
    port = behind(endpoint.host) if endpoint.port == switch else endpoint.port
    sock = socket.socket()
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, (door(port), switch))
        await loop.sock_sendall(sock, PREAMBLE.pack(MAGIC, port, len(name.encode())) + name.encode())
        answer = await loop.sock_recv(sock, 1)
        if answer == REFUSED:
            raise ConnectionRefusedError(111, "Connection refused")
        if answer != CONNECTED:
            raise ConnectionResetError(104, "Connection reset by peer")
    except BaseException:
        sock.close()
        raise
    return sock


def main() -> None:
    switch, cable, name, *arguments = sys.argv[1:]
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    process.subprocess = subprocess  # also in a process that was started warm, computing begins as it does for a person
    if int(cable):
        cables.enter(int(cable))
    if int(switch):
        assert attempt._connected, "what connects to a peer has another name now"
        attempt._connected = lambda endpoint: through(int(switch), name, endpoint)
    from p2pnn.cli import main as program

    sys.exit(program(arguments))


if __name__ == "__main__":
    main()
