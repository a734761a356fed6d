"""When a supervised replica is worn out. Pure.

Long-lived CLIs slow down and do not give memory back, so they can be replaced by age, by sessions
served or by memory, one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecyclePolicy:
    """Limits after which a CLI is restarted; 0 means no limit.

    Attributes:
        age: seconds since it was last started.
        sessions: sessions made live on it since then.
        memory: resident bytes.
    """

    age: float = 0.0
    sessions: int = 0
    memory: int = 0

    def reason(self, *, age: float, sessions: int, memory: int) -> str | None:
        """Return why a CLI should be recycled now, or None."""
        if self.age and age >= self.age:
            return f"it has run for {age:.0f} s"
        if self.sessions and sessions >= self.sessions:
            return f"it has served {sessions} sessions"
        if self.memory and memory >= self.memory:
            return f"it holds {memory >> 20} MiB"
        return None
