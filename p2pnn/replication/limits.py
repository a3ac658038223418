"""How long a replica waits, and how much it holds. Each with what more and less of it cost."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Raises ValueError where they contradict each other."""

    beat_s: float = 0.1
    """Between the primary's beats, and between its looks at the others. Less: more small messages; more: slower to notice."""

    resend_s: float = 0.15
    """Until what was not answered is sent again. Below a round trip everything would be sent twice."""

    silence_s: float = 0.6
    """Until the primary proposes to remove who does not answer. Writes stall that long when a backup dies; a shorter one
    removes backups that only pause."""

    slow_s: float = 0.8
    """How long a living backup may keep an update waiting until the primary proposes to demote it. Writes stall that long."""

    slow_bytes_per_s: float = 4e6
    """What a link carries at least: bytes that are under way extend slow_s, push_again_s, and to a learner resend_s and
    silence_s by the time that they take at this rate. On a slower link large updates are sent twice, and such a backup is
    demoted."""

    propose_again_s: float = 0.3
    """Until a proposal of which nothing is heard is made again; some commits take that long."""

    fetch_again_s: float = 0.2
    """Between questions for the committed configuration."""

    steady_s: float = 0.3
    """How long a learner must have kept up before it is promoted; twice as long after each demotion, so that a backup which
    is fast only now and then does not go to and fro."""

    steady_max_s: float = 30.0
    push_again_s: float = 0.5
    """Until a worker sends an unanswered update again (twice as long each time, up to push_again_max_s). Links lose nothing
    unless they break, so this is for the rare case."""

    push_again_max_s: float = 1.0

    def __post_init__(self) -> None:
        relations = {
            "0 < beat_s <= resend_s": 0 < self.beat_s <= self.resend_s,
            "2 * beat_s < silence_s": 2 * self.beat_s < self.silence_s,
            "resend_s < slow_s": self.resend_s < self.slow_s,
            "0 < steady_s <= steady_max_s": 0 < self.steady_s <= self.steady_max_s,
            "0 < push_again_s <= push_again_max_s": 0 < self.push_again_s <= self.push_again_max_s,
            "0 < propose_again_s": self.propose_again_s > 0,
            "0 < fetch_again_s": self.fetch_again_s > 0,
            "0 < slow_bytes_per_s": self.slow_bytes_per_s > 0,
        }
        for relation, holds in relations.items():
            if not holds:
                raise ValueError(f"a replica's times must satisfy {relation}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one replica of one shard. Raises ValueError where they contradict each other."""

    entries_max: int = 256
    """Updates that have a number and are not committed yet. Beyond, pushes wait in staging."""

    log_bytes_max: int = 256 * MIB
    """Their bytes together, apart from the last one's: whatever its size, one update can be under way."""

    retained_entries: int = 256
    """Committed updates that are kept, so that who was away for a moment needs no whole state."""

    retained_bytes: int = 64 * MIB
    catching_up_entries: int = 4096
    """Committed updates that a primary keeps instead while a learner is being synced: those since the state that it is sent. More
    lets a learner catch up over a slower link; beyond, it begins anew."""

    catching_up_bytes: int = 1024 * MIB
    staged_max: int = 64
    """Updates that are arriving, or wait for a number. Beyond, an idle one is dropped for a new one, or the new one is; its
    worker sends it again."""

    staged_bytes_max: int = 256 * MIB
    staged_idle_s: float = 2.0
    """How long an update of which nothing arrives keeps its place when another needs it."""

    window: int = 4
    """Updates of one worker under way at once."""

    sessions_max: int = 4096
    """Worker incarnations that a shard knows, 16 bytes each; they are never forgotten, since a late push would count twice."""

    piece_bytes: int = MIB
    pieces_max: int = 4096
    """Pieces of one update."""

    state_bytes_max: int = 8 * 1024 * MIB
    """A state that a learner is ready to receive."""

    state_window: int = 4
    """Pieces of a state under way at once: they share the link with updates."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < (0 if name.startswith("retained") else 1e-9):
                raise ValueError(f"a replica's limit {name} is {getattr(self, name)}; it must be positive")
        relations = {
            "window <= staged_max": self.window <= self.staged_max,
            "retained_entries <= catching_up_entries": self.retained_entries <= self.catching_up_entries,
            "retained_bytes <= catching_up_bytes": self.retained_bytes <= self.catching_up_bytes,
        }
        for relation, holds in relations.items():
            if not holds:
                raise ValueError(f"a replica's limits must satisfy {relation}")
