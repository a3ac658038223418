"""TCP links between peers: listening, dialling, messages in order, bodies without copies."""

from p2pnn.transport.events import Events, LinkSnapshot, LocalIdentity, PeerIdentity
from p2pnn.transport.limits import Limits
from p2pnn.transport.transport import Transport

__all__ = ["Events", "Limits", "LinkSnapshot", "LocalIdentity", "PeerIdentity", "Transport"]
