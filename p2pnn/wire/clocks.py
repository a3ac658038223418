"""Everything of a link that depends on time, kept apart from what depends on bytes.

    until open        handshake_deadline_s since connecting                         TOO_SLOW
    inside a frame    frame_deadline_s since its first byte                         TOO_SLOW
    inside a frame    stall_deadline_s without a byte (or with a body unfinished)   TOO_SLOW
    on a control link silent_deadline_s without a byte; a Ping every ping_interval_s   SILENT

Many small deadlines instead of one rate: a peer that dribbles a byte now and then is caught by the second line, one that
stops in the middle by the third, one that died by the fourth.
"""

from __future__ import annotations

from p2pnn.wire.limits import Limits
from p2pnn.wire.messages import CloseReason

_RTT_GAIN = 1 / 8  # RFC 6298, section 2


class Clocks:
    """The deadlines of one link. All times are seconds on the caller's monotonic clock."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.rtt_s: float | None = None
        self._limits = limits
        self._heard = now
        self._handshake_due: float | None = now + limits.handshake_deadline_s
        self._control = False
        self._frame_due: float | None = None
        self._frame = 0  # the number of the frame that _frame_due belongs to
        self._stallable = False
        self._ping_due: float | None = None
        self._pings = 0
        self._ping_sent: float | None = None  # the Ping that is not answered yet

    def opened(self, now: float, control: bool) -> None:
        """The handshake is done."""
        self._handshake_due = None
        self._control = control
        self._heard = now
        self._ping_due = now + self._limits.ping_interval_s if control else None

    def heard(self, now: float) -> None:
        """Bytes arrived."""
        self._heard = now

    def receiving(self, frame: int, in_frame: bool, in_body: bool, now: float) -> None:
        """What is unfinished once all bytes were read; frame: its number, so that the next one gets its own deadline."""
        self._stallable = in_frame or in_body
        if not in_frame:
            self._frame_due = None
        elif self._frame_due is None or frame != self._frame:
            self._frame_due = now + self._limits.frame_deadline_s
            self._frame = frame

    def due(self) -> float | None:
        """When something is to be done, or None."""
        times = (self._handshake_due, self._frame_due, self._stall_due, self._silent_due, self._ping_due)
        return min((time for time in times if time is not None), default=None)

    def overdue(self, now: float) -> tuple[CloseReason, str] | None:
        """The first deadline that has passed, as the reason to close."""
        limits = self._limits
        if _passed(self._handshake_due, now):
            return CloseReason.TOO_SLOW, f"the handshake was not done within {limits.handshake_deadline_s:g} s"
        if _passed(self._frame_due, now):
            return CloseReason.TOO_SLOW, f"a frame was not complete within {limits.frame_deadline_s:g} s"
        if _passed(self._silent_due, now):
            return CloseReason.SILENT, f"nothing was received for {limits.silent_deadline_s:g} s, pings went unanswered"
        if _passed(self._stall_due, now):
            return CloseReason.TOO_SLOW, f"nothing followed for {limits.stall_deadline_s:g} s inside a frame or body"
        return None

    def ping(self, now: float) -> int | None:
        """The nonce of a Ping to send now, or None. One is under way at most: a dead peer's are not piled up."""
        if not _passed(self._ping_due, now):
            return None
        self._ping_due = now + self._limits.ping_interval_s
        if self._ping_sent is not None:
            return None
        self._pings += 1
        self._ping_sent = now
        return self._pings

    def pong(self, nonce: int, now: float) -> bool:
        """An answer arrived. False: to a Ping that is not under way."""
        if self._ping_sent is None or nonce != self._pings:
            return False
        sample = max(0.0, now - self._ping_sent)
        self.rtt_s = sample if self.rtt_s is None else self.rtt_s + _RTT_GAIN * (sample - self.rtt_s)
        self._ping_sent = None
        return True

    @property
    def _stall_due(self) -> float | None:
        return self._heard + self._limits.stall_deadline_s if self._stallable else None

    @property
    def _silent_due(self) -> float | None:
        return self._heard + self._limits.silent_deadline_s if self._control else None


def _passed(due: float | None, now: float) -> bool:
    return due is not None and now >= due
