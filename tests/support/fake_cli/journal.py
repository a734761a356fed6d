"""What a CLI keeps on disk: one JSON line per event and session, and the in-use locks."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

Event = dict[str, Any]

_living: set[str] = set()
"""Lock owners of this process; those of others are told by their process id."""


class Storage:
    """The ``session-state`` folder as one CLI process sees it.

    Attributes:
        owner: names this CLI in lock files: a process id, and a number where fakes share one.
    """

    _count = 0

    def __init__(self, home: Path) -> None:
        self._root = home / "session-state"
        Storage._count += 1
        self.owner = f"{os.getpid()}-{Storage._count}"

    def open(self) -> None:
        """Be alive: locks of this owner count from now on."""
        _living.add(self.owner)

    def close(self) -> None:
        """Be dead: locks left behind no longer count."""
        _living.discard(self.owner)

    def path(self, session_id: str) -> Path:
        """Return the folder of a session."""
        return self._root / session_id

    def _journal(self, session_id: str) -> Path:
        return self.path(session_id) / "events.jsonl"

    def exists(self, session_id: str) -> bool:
        """Tell whether anything of a session was ever written."""
        return self._journal(session_id).is_file()

    def append(self, session_id: str, events: list[Event]) -> None:
        """Write events at the end of a session's journal."""
        self.path(session_id).mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events)
        with self._journal(session_id).open("a") as journal:
            journal.write(lines)

    def read(self, session_id: str) -> list[Event]:
        """Return a session's events; damaged lines are passed over."""
        events: list[Event] = []
        try:
            lines = self._journal(session_id).read_text().splitlines()
        except OSError:
            return events
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    def sessions(self) -> list[str]:
        """Return the ids of all sessions on disk, the last modified first."""
        found = [(path.stat().st_mtime_ns, path.parent.name) for path in self._journals()]
        return [name for _, name in sorted(found, reverse=True)]

    def _journals(self) -> list[Path]:
        return list(self._root.glob("*/events.jsonl"))

    def modified(self, session_id: str) -> float:
        """Return the Unix time at which a session was last written."""
        return self._journal(session_id).stat().st_mtime

    def delete(self, session_id: str) -> None:
        """Remove a session's files."""
        shutil.rmtree(self.path(session_id), ignore_errors=True)

    def lock(self, session_id: str) -> None:
        """Mark a session as in use by this CLI."""
        folder = self.path(session_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"inuse.{self.owner}.lock").touch()

    def unlock(self, session_id: str) -> None:
        """Take the mark away; leave no folder for a session that was never written."""
        (self.path(session_id) / f"inuse.{self.owner}.lock").unlink(missing_ok=True)
        if not self.exists(session_id):
            self.delete(session_id)

    def in_use_elsewhere(self, session_id: str) -> bool:
        """Tell whether another living CLI on this storage has a session loaded."""
        for lock in self.path(session_id).glob("inuse.*.lock"):
            owner = lock.name.removeprefix("inuse.").removesuffix(".lock")
            if owner != self.owner and _is_alive(owner):
                return True
        return False


def _is_alive(owner: str) -> bool:
    pid = int(owner.partition("-")[0])
    if pid == os.getpid():
        return owner in _living
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
